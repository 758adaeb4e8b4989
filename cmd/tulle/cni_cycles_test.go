package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/tulle-net/tulle/control/cniapi"
	"github.com/tulle-net/tulle/scripts/lab"
)

var cycles = flag.Int("cycles", 200, "how often TestCNICycles adds and deletes a container")

// TestCNICycles adds and deletes containers, with links and with TAPs, some with ports and limits, from several sides at once, while plugins and daemon are killed at
// any point. A runtime that was not answered repeats its DEL; in the end nothing is left.
func TestCNICycles(t *testing.T) {
	const workers, cyclesPerKill = 4, 40
	l := labUnderTest(t, lab.Config{Nodes: 1, Pods: 0, Store: lab.StoreFile, Family: lab.FamilyDual})
	n := l.Nodes()[0]
	var done, cut, refused atomic.Int64
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; i < *cycles && !t.Failed(); i += workers {
				c := &cycle{newSandbox(t, fmt.Sprint("c", i)), n, w}
				switch err := c.run("ADD", rand.IntN(5) == 0); {
				case err == errCut:
					cut.Add(1)
				case err != nil:
					refused.Add(1)
				}
				c.delete(t)
				c.Close()
				done.Add(1)
			}
		})
	}
	kills := 0
	for done.Load() < int64(*cycles) && !t.Failed() {
		next := min(done.Load()+cyclesPerKill/2+rand.Int64N(cyclesPerKill), int64(*cycles))
		for done.Load() < next && !t.Failed() {
			time.Sleep(time.Millisecond)
		}
		if next == int64(*cycles) {
			break
		}
		kills++
		if err := errors.Join(l.StopNode(t.Context(), 1, syscall.SIGKILL), l.StartNode(t.Context(), 1)); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	t.Logf("%d cycles, %d plugins and %d daemons killed, %d ADDs refused meanwhile", done.Load(), cut.Load(), kills, refused.Load())
	// An ADD whose plugin was killed can come after its DEL: the sweep finds what it made.
	for deadline := time.Now().Add(3 * podSweep); (len(podLinks(t, n)) > 0 || strings.Contains(leases(t, n), "eth0")) && time.Now().Before(deadline); {
		time.Sleep(100 * time.Millisecond)
	}
	waitFor(t, func() bool { return len(status(t, l, 1).NotReady) == 0 })
	traceless(t, n)
	noPorts(t, n)
}

// A cycle is one container's life.
type cycle struct {
	*sandbox
	n      lab.Node
	worker int
}

var errCut = errors.New("the plugin was killed")

// run runs the plugin as a runtime does, which is killed at any point if it is to be cut.
func (c *cycle) run(command string, cut bool) error {
	bin, err := pluginDir()
	if err != nil {
		return err
	}
	asked := ports(cniapi.Port{HostPort: 9000 + c.worker, ContainerPort: 80, Protocol: []string{"tcp", "udp"}[c.worker%2]})
	asked["bandwidth"] = cniapi.Bandwidth{EgressRate: 1e9, EgressBurst: 1 << 20}
	attachment := "veth"
	switch c.worker {
	case 0:
		asked = nil
	case 1, 2: // a UDP port and a TCP port
		attachment = "tap"
		delete(asked, "bandwidth")
	}
	config, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": cniNetwork, "type": "tulle-cni", "runDir": c.n.RunDir, "attachment": attachment, "runtimeConfig": asked})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(contextOfTests)
	defer cancel()
	if cut {
		defer time.AfterFunc(time.Duration(rand.IntN(30))*time.Millisecond, cancel).Stop()
	}
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "tulle-cni"))
	cmd.Env = []string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + c.id, "CNI_NETNS=" + c.name, "CNI_IFNAME=eth0", "CNI_PATH=/x"}
	cmd.Stdin = bytes.NewReader(config)
	out, err := cmd.Output()
	if ctx.Err() != nil {
		return errCut
	}
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// delete repeats DEL until it is answered, as runtimes do.
func (c *cycle) delete(t *testing.T) {
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = c.run("DEL", rand.IntN(5) == 0); err == nil {
			return
		}
	}
	t.Errorf("DEL of %s: %v", c.id, err)
}

// noPorts demands that none of a node's ports leads to a container.
func noPorts(t *testing.T, n lab.Node) {
	t.Helper()
	in(t, n, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		chains, err := c.ListChains()
		for _, chain := range chains {
			if chain.Table.Name == "tulle" && !strings.HasPrefix(chain.Name, "native") { // those are the node's own
				t.Errorf("%s: chain %s is left", n.Name, chain.Name)
			}
		}
		return err
	})
}

// BenchmarkCNIPlugin starts the plugin, asks it for its versions and waits for its end. Its CPU time is what a busy machine changes least.
func BenchmarkCNIPlugin(b *testing.B) {
	bin, err := pluginDir()
	if err != nil {
		b.Fatal(err)
	}
	var cpu time.Duration
	for b.Loop() {
		cmd := exec.Command(filepath.Join(bin, "tulle-cni"))
		cmd.Env = []string{"CNI_COMMAND=VERSION"}
		cmd.Stdin = bytes.NewReader([]byte(`{"cniVersion":"1.1.0"}`))
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	}
	b.ReportMetric(float64(cpu.Microseconds())/float64(b.N)/1000, "cpu-ms/op")
}
