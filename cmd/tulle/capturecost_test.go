package main

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tulle-net/tulle/scripts/lab"
	"github.com/tulle-net/tulle/scripts/need"
)

// BenchmarkCapture measures what captures at full rate cost a TCP stream between two nodes: rounds of every variant in turn, the
// median of the ratios to the round's stream without a capture; tcpdump on the same wire is the yardstick. Run it on an idle machine:
//
//	go test -run '^$' -bench BenchmarkCapture -benchtime 5x ./cmd/tulle
func BenchmarkCapture(b *testing.B) {
	l := labUnderTest(b, lab.Config{Nodes: 2, Pods: 1})
	n := l.Nodes()[0]
	stream := streamTCP(b, between(l, 1, 2))
	rate := func() float64 {
		time.Sleep(300 * time.Millisecond)
		start, before := time.Now(), stream.received.Load()
		time.Sleep(2 * time.Second)
		return float64(stream.received.Load()-before) * 8 / 1e9 / time.Since(start).Seconds()
	}
	variants := []struct {
		name  string
		start func() (stop func() string)
	}{
		{"default", captureTo(b, n)}, {"tap", captureTo(b, n, "--stage", "tap")}, {"wire+tap", captureTo(b, n, "--stage", "wire,tap")},
		{"headers", captureTo(b, n, "--stage", "wire,tap", "-s", "128")},
		{"whole", captureTo(b, n, "-s", "0")}, {"tcpdump-whole", tcpdump(b, n, status(b, l, 1).Underlay.Link)},
	}
	var off []float64
	ratios := map[string][]float64{}
	for b.Loop() {
		without := rate()
		off = append(off, without)
		for _, v := range variants {
			stop := v.start()
			ratios[v.name] = append(ratios[v.name], rate()/without)
			b.Log(v.name, stop())
		}
	}
	b.ReportMetric(median(off), "Gb/s-off")
	for name, r := range ratios {
		b.ReportMetric(median(r), name+"/off")
	}
}

func captureTo(b *testing.B, n lab.Node, args ...string) func() func() string {
	return func() func() string {
		return startCapture(b, n, append(args, "--max-size", "100GB", "-w", "/dev/null")...).stop
	}
}

// tcpdump captures the tunnel's packets, whole.
func tcpdump(b *testing.B, n lab.Node, link string) func() func() string {
	program, err := need.Debian(b.Context(), "tcpdump", "tcpdump")
	if err != nil {
		b.Fatal(err)
	}
	return func() func() string {
		cmd := exec.Command(program, "-i", link, "-s", "0", "-w", "/dev/null", "udp port 8472")
		stderr, err := cmd.StderrPipe()
		if err == nil {
			err = lab.In(n.Namespace, cmd.Start)
		}
		if err != nil {
			b.Fatal(err)
		}
		said := bufio.NewReader(stderr)
		for line := ""; !strings.Contains(line, "listening on"); {
			if line, err = said.ReadString('\n'); err != nil {
				b.Fatalf("tcpdump: %s", line)
			}
		}
		return func() string {
			cmd.Process.Signal(os.Interrupt)
			rest, _ := io.ReadAll(said)
			cmd.Wait()
			return string(rest)
		}
	}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}
