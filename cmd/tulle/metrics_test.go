package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/scripts/lab"
)

// fetch gets a page of a node's metrics server over a connection made inside the node.
func fetch(t *testing.T, n lab.Node, path string) (status int, body string) {
	t.Helper()
	var conn net.Conn
	in(t, n, func() (err error) {
		conn, err = net.Dial("tcp", "127.0.0.1:9470")
		return err
	})
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}}
	resp, err := client.Get("http://127.0.0.1:9470" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// TestMetrics demands that the metrics are well-formed, name every verdict and agree with the status.
func TestMetrics(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1})
	pingAll(t, l.PodPairs(), smallPing)
	n := l.Nodes()[0]
	for _, path := range []string{"/healthz", "/readyz"} {
		if code, body := fetch(t, n, path); code != http.StatusOK || body != "ok\n" {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
	before := status(t, l, 1)
	_, text := fetch(t, n, "/metrics")
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("lint: %s: %s", p.Metric, p.Text)
	}
	r := status(t, l, 1)
	for v := packet.None + 1; v < packet.NumVerdicts; v++ {
		value := regexp.MustCompile(fmt.Sprintf(`(?m)^tulle_packets_total\{verdict=%q\} (\d+)$`, v)).FindStringSubmatch(text)
		if value == nil {
			t.Errorf("no value for the verdict %s", v)
			continue
		}
		if n, _ := strconv.ParseUint(value[1], 10, 64); n < before.Verdicts[v.String()] || n > r.Verdicts[v.String()] {
			t.Errorf("%s packets %s, the status said %d before and %d after", value[1], v, before.Verdicts[v.String()], r.Verdicts[v.String()])
		}
	}
	for _, want := range []string{"tulle_ready 1\n", "tulle_routable_peers 1\n", `tulle_subnet_info{network="10.244.0.0/16",subnet="` + n.Subnet.String() + `"} 1`, "tulle_tap_reopened_total 0\n",
		`tulle_flows{family="ipv4"}`, `tulle_path_mtu_bytes{peer="n2",to="192.168.77.2"} 1450`} {
		if !strings.Contains(text, want) {
			t.Errorf("no line %q", want)
		}
	}
}

func TestMetricsBeyondLoopback(t *testing.T) {
	for at, want := range map[string]bool{"127.0.0.1:0": true, "[::1]:0": true, "127.9.9.9:0": true, "0.0.0.0:0": false, "[::]:0": false, ":0": false} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		if got := onLoopback(l.Addr()); got != want {
			t.Errorf("%s is taken for loopback: %v", at, got)
		}
		l.Close()
	}
}
