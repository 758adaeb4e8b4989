package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tulle-net/tulle/bench/compare"
	"github.com/tulle-net/tulle/bench/result"
	"github.com/tulle-net/tulle/scripts/lab"
)

// benchCommand runs tulle bench as its own process.
func benchCommand(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, self, append([]string{"bench"}, args...)...)
	cmd.Env = append(os.Environ(), asTulle+"=1", "GORACE=atexit_sleep_ms=0")
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// TestBenchQuick is what make bench-quick does: every path is measured, and the result can be shown in every form.
func TestBenchQuick(t *testing.T) {
	dir := t.TempDir()
	save := filepath.Join(dir, "result.json")
	stdout, stderr, code := benchCommand(t, "compare", "--preset", "quick", "--save", save, "--dir", filepath.Join(dir, "lab"))
	if code != 0 {
		t.Fatalf("exit code %d\n%s", code, stderr)
	}
	r, err := result.Load(save)
	if err != nil {
		t.Fatal(err)
	}
	plan, _ := compare.FindPlan("quick")
	if names := r.PathNames(); !slices.Equal(names, append(slices.Clone(plan.Paths), result.Tables)) || len(r.Failures) != 0 || len(r.Environment.Offloads["veth"]) == 0 {
		t.Errorf("paths %v, want %v; failures %v; offloads %v", names, plan.Paths, r.Failures, r.Environment.Offloads)
	}
	for _, path := range plan.Paths {
		for _, name := range []string{"tcp/1-flow", "tcp-rr", "tcp-rr/p99", "udp-64B/1-flow/flood"} {
			if !slices.ContainsFunc(r.Figures, func(f result.Figure) bool { return f.Path == path && f.Name == name && f.Value > 0 }) {
				t.Errorf("no %s of %s", name, path)
			}
		}
		if !slices.ContainsFunc(r.Trials, func(trial result.Trial) bool { return trial.Path == path && trial.Search != nil }) {
			t.Errorf("no search of %s", path)
		}
	}
	for name, path := range map[string]string{"udp-64B/1-flow/flood/allocs": "tulle", "udp-64B/1-flow/flood/memory": "tulle-udp",
		"fib/10000-routes/256-used/v6": result.Tables, "conntrack/memory/v4": result.Tables} {
		if !slices.ContainsFunc(r.Figures, func(f result.Figure) bool { return f.Path == path && f.Name == name }) {
			t.Errorf("no %s of %s", name, path)
		}
	}
	if r.Command != "tulle bench compare --preset quick" {
		t.Errorf("command %q", r.Command)
	}
	if !strings.Contains(stdout, "musts met") || !strings.Contains(stdout, "TO KERNEL") || !strings.Contains(stderr, "1/1  veth  water") {
		t.Errorf("stdout:\n%s\nstderr:\n%s", stdout, stderr)
	}
	for file, want := range map[string]string{"r.html": "</html>", "r.md": "| tcp-rr |", "r.txt": "BenchmarkTcp-rr/path=kernel/underlay=veth 1 ", "r.json": `"schemaVersion": 1`} {
		path := filepath.Join(dir, file)
		if _, stderr, code := benchCommand(t, "report", save, "-o", path); code != 0 {
			t.Errorf("%s: exit code %d: %s", file, code, stderr)
		}
		if b, _ := os.ReadFile(path); !strings.Contains(string(b), want) {
			t.Errorf("no %q in %s", want, file)
		}
	}
}

// TestBenchScale has every point of the smoke run: all frames and datagrams arrive, and the curves can be put into a report.
func TestBenchScale(t *testing.T) {
	dir := t.TempDir()
	stdout, stderr, code := benchCommand(t, "scale", "--preset", "quick", "--dir", filepath.Join(dir, "lab"))
	if code != 0 {
		t.Fatalf("exit code %d\n%s", code, stderr)
	}
	curves, err := result.ReadCurves(strings.NewReader(stdout))
	if err != nil {
		t.Fatal(err)
	}
	for _, parameter := range []string{"flows", "peers", "pods"} {
		for _, unit := range []string{result.CPUPacket, result.Allocs, "MiB/daemon", "lost/packet"} {
			if !slices.ContainsFunc(curves, func(c result.Curve) bool {
				return c.Parameter == parameter && c.Unit == unit && c.Benchmark == "scale.Traffic" && len(c.Points) == 2
			}) && !strings.Contains(stderr, parameter+"=") {
				t.Errorf("no curve of %s by %s\n%s\n%s", unit, parameter, stdout, stderr)
			}
		}
	}
	for _, c := range curves {
		for _, p := range c.Points {
			if c.Unit == "MiB/daemon" && p.Y < 1 || c.Unit == "lost/packet" && p.Y > 0.5 {
				t.Errorf("%s=%g: %g %s", c.Parameter, p.X, p.Y, c.Unit)
			}
		}
	}
}

// TestBenchBaseline measures thrice against a result that nothing can reach, and against one that anything does.
func TestBenchBaseline(t *testing.T) {
	dir := t.TempDir()
	save, best, worst := filepath.Join(dir, "result.json"), filepath.Join(dir, "best.json"), filepath.Join(dir, "worst.json")
	args := []string{"compare", "--preset", "quick", "--cases", "tcp-rr", "--paths", "wireguard", "--rounds", "3", "--save", save, "--dir", filepath.Join(dir, "lab"), "-o", "json"}
	stdout, stderr, code := benchCommand(t, args...)
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	r := new(result.Result)
	if err := json.Unmarshal([]byte(stdout), r); err != nil {
		t.Fatal(err)
	}
	for path, factor := range map[string]float64{best: 100, worst: 0.01} {
		other := *r
		other.Figures = slices.Clone(r.Figures)
		for i, f := range other.Figures {
			if f.Path == "wireguard" && f.Unit == result.Transacts {
				other.Figures[i].Value *= factor
			} else if f.Path == "wireguard" {
				other.Figures[i].Value /= factor
			}
		}
		if err := other.Save(path); err != nil {
			t.Fatal(err)
		}
	}
	_, stderr, code = benchCommand(t, append(args, "--baseline", best)...)
	if code != exitUnhealthy || !strings.Contains(stderr, " worse") {
		t.Errorf("against the best: exit code %d: %s", code, stderr)
	}
	_, stderr, code = benchCommand(t, append(args, "--baseline", worst)...)
	if code != 0 || !strings.Contains(stderr, "none of ") {
		t.Errorf("against the worst: exit code %d: %s", code, stderr)
	}
}

// TestBenchRun measures a lab that is up, and the same by its namespaces' names.
func TestBenchRun(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1})
	a, b := l.Nodes()[0].Pods[0], l.Nodes()[1].Pods[0]
	for _, args := range [][]string{
		{"--lab-dir", l.Dir()},
		{"--from", a.Namespace, "--from-addr", a.Addr.String(), "--to", b.Namespace, "--to-addr", b.Addr.String()},
	} {
		before := status(t, l, 1).Verdicts["encapsulated"]
		stdout, stderr, code := benchCommand(t, append([]string{"run", "--cases", "tcp-rr,udp-64B/1-flow"}, args...)...)
		if code != 0 || !strings.Contains(stdout, "this") || !strings.Contains(stdout, "udp-64B/1-flow/no-drop") {
			t.Errorf("exit code %d\n%s\n%s", code, stdout, stderr)
		}
		if n := status(t, l, 1).Verdicts["encapsulated"] - before; n < 1000 {
			t.Errorf("%d packets went through the daemon", n)
		}
	}
}

// TestBenchTwoEndpoints has the server in a process of its own in one pod and the client in another: nothing but the path joins them.
func TestBenchTwoEndpoints(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1})
	a, b := l.Nodes()[0].Pods[0], l.Nodes()[1].Pods[0]
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	addr := b.Addr.String() + ":5000"
	server := exec.Command(self, "bench", "run", "--listen", addr)
	server.Env = append(os.Environ(), asTulle+"=1", "GORACE=atexit_sleep_ms=0")
	said, err := server.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.In(b.Namespace, server.Start); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(said).ReadString('\n')
	if err != nil || line != "listening at "+addr+"\n" {
		t.Errorf("%q, %v", line, err)
	}
	var out, errOut bytes.Buffer
	client := exec.Command(self, "bench", "run", "--connect", addr, "-o", "json")
	client.Env, client.Stdout, client.Stderr = server.Env, &out, &errOut
	if err := errors.Join(lab.In(a.Namespace, client.Start), client.Wait()); err != nil {
		t.Fatalf("%v\n%s", err, &errOut)
	}
	r := new(result.Result)
	if err := json.Unmarshal(out.Bytes(), r); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tcp/1-flow", "tcp-rr", "udp-64B/1-flow/flood"} {
		if !slices.ContainsFunc(r.Figures, func(f result.Figure) bool { return f.Path == compare.This && f.Name == name && f.Value > 0 }) {
			t.Errorf("no %s", name)
		}
	}
	if slices.ContainsFunc(r.Figures, func(f result.Figure) bool {
		return f.Path == compare.This && (strings.Contains(f.Name, "/cpu") || strings.Contains(f.Name, "/delay"))
	}) {
		t.Error("CPU times or one-way delays of two machines")
	}
	if err := errors.Join(server.Process.Signal(syscall.SIGTERM), server.Wait()); err != nil {
		t.Errorf("server: %v", err)
	}
}

func TestBenchErrors(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.json")
	os.WriteFile(bad, []byte("{}"), 0o644)
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"restarts", "--kills", "-1"}, 2, "--kills -1: must be 0 to 10000"},
		{[]string{"restarts", "--next", "/nowhere"}, 2, "--next: stat /nowhere"},
		{[]string{"frobnicate"}, 2, `no command "frobnicate" (have: run, compare, scale, restarts, report)`},
		{[]string{"compare", "--preset", "slow"}, 2, `no such preset (have: quick, table, variants, full)`},
		{[]string{"scale", "--preset", "table"}, 2, `no such preset (have: quick, full)`},
		{[]string{"compare", "--paths", "string"}, 2, "no such path (have: bare, kernel, tulle"},
		{[]string{"compare", "--cases", "x"}, 2, "no such case (have: tcp/1-flow"},
		{[]string{"compare", "--underlays", "tin"}, 2, "no such underlay (have: veth, wire)"},
		{[]string{"compare", "--family", "v5"}, 2, "--family v5: unknown (allowed: v4, v6)"},
		{[]string{"compare", "--rounds", "-1"}, 2, "must be 1 to 100"},
		{[]string{"compare", "--threshold", "much"}, 2, "--threshold much: must be 0% to 99%"},
		{[]string{"compare", "-o", "xml"}, 2, "-o xml: unknown format"},
		{[]string{"compare", "--baseline", dir + "/none"}, 1, "no such file"},
		{[]string{"compare", "--baseline", bad}, 1, "schema version 0: this program reads 1"},
		{[]string{"run", "--from", "x"}, 2, "--from and --to: give both or none"},
		{[]string{"run", "--from", "x", "--to", "y"}, 2, "--from-addr"},
		{[]string{"run", "--from", "x", "--to", "y", "--from-addr", "10.0.0.1", "--to-addr", "fd00::1"}, 2, "must be of one family"},
		{[]string{"run", "--listen", ":1", "--connect", ":2"}, 2, "exclude each other"},
		{[]string{"run", "--connect", "127.0.0.1:1"}, 1, "connection refused"},
		{[]string{"run", "--lab-dir", dir}, 1, "no lab in " + dir},
		{[]string{"report", dir + "/none"}, 1, "no such file"},
		{[]string{"report", "--format", "pdf"}, 2, "--format pdf: unknown format (allowed: table, html, md, gobench, json)"},
		{[]string{"report", "-o", "x.pdf"}, 2, "-o x.pdf: what format?"},
		{[]string{"report", "a", "b"}, 2, "give one result.json, not 2"},
		{[]string{"router"}, 2, "give a kind (have: water, wireguard)"},
		{[]string{"router", "fire"}, 1, `no such kind (have: water, wireguard)`},
	} {
		stdout, stderr, code := benchCommand(t, c.args...)
		if code != c.code || !strings.Contains(stderr, c.want) || strings.Count(stderr, "\n") != 1 || stdout != "" {
			t.Errorf("%v: exit code %d, %q, want %d, %q", c.args, code, stderr, c.code, c.want)
		}
	}
}
