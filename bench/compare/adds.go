package compare

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tulle-net/tulle/control/cniapi"
	"github.com/tulle-net/tulle/scripts/lab"
)

// adds is how often the plugin adds one more pod at each number of pods.
const adds = 20

// attach is what it takes to add a pod to a node that has some, by the plugin's process from its start to its end as a runtime sees it, and
// the daemon's memory. VERSION beside it asks no daemon: it is what the start of the plugin takes.
func (s *scale) attach(ctx context.Context) error {
	plugin := filepath.Join(filepath.Dir(s.options.Executable), "tulle-cni")
	if _, err := os.Stat(plugin); err != nil {
		fmt.Fprintf(s.options.Progress, "cni: left out: %v\n", err)
		return nil
	}
	for _, kind := range []string{cniapi.KindVeth, cniapi.KindTAP} {
		if err := s.attachKind(ctx, plugin, kind); err != nil {
			return fmt.Errorf("attachment %s: %w", kind, err)
		}
	}
	return nil
}

func (s *scale) attachKind(ctx context.Context, plugin, kind string) (err error) {
	l, err := lab.Up(ctx, lab.Config{Nodes: 1, Dir: s.options.Dir, Store: lab.StoreFile, Executable: s.options.Executable, Ephemeral: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down()) }()
	p := &runtimePlugin{path: plugin, kind: kind, node: l.Nodes()[0]}
	defer func() { err = errors.Join(err, p.close()) }()
	for _, n := range s.sizes.Pods {
		for len(p.boxes) < n {
			if _, err := p.add(ctx, fmt.Sprint("pod", len(p.boxes))); err != nil {
				return err
			}
		}
		if err := s.attachPoint(ctx, p, n); err != nil {
			return err
		}
	}
	return nil
}

func (s *scale) attachPoint(ctx context.Context, p *runtimePlugin, n int) error {
	var added, started []time.Duration
	for i := range adds {
		took, err := p.add(ctx, fmt.Sprint("more", i))
		if err != nil {
			return err
		}
		added = append(added, took)
		if err := p.remove(ctx, fmt.Sprint("more", i)); err != nil {
			return err
		}
		if took, err = p.run(ctx, "VERSION", "", ""); err != nil {
			return err
		}
		started = append(started, took)
	}
	rest, used, err := (daemon{p.node}).atRest(ctx)
	if err != nil {
		return err
	}
	slices.Sort(added)
	slices.Sort(started)
	fmt.Fprintf(s.options.Progress, "%s, %d pods: ADD %v, at most %v of %d; VERSION %v; %.1f MiB, %.1f ms of CPU a second at rest\n", p.kind, n, added[adds/2], added[adds-1], adds, started[adds/2], used.memory/(1<<20), rest)
	_, err = fmt.Fprintf(s.out, "BenchmarkADD/%s/pods=%d %d %d median-ns/op %.2f MiB/daemon %.2f cpu-ms/s-at-rest\nBenchmarkVERSION/%s/pods=%d %d %d median-ns/op\n",
		p.kind, n, adds, added[adds/2], used.memory/(1<<20), rest, p.kind, n, adds, started[adds/2])
	return err
}

// A runtimePlugin is the plugin of a node, run as a container runtime does.
type runtimePlugin struct {
	path, kind string
	node       lab.Node
	boxes      []*lab.Sandbox
}

// add makes a namespace and adds it, and returns how long the latter took.
func (p *runtimePlugin) add(ctx context.Context, id string) (time.Duration, error) {
	box, err := lab.NewSandbox()
	if err != nil {
		return 0, err
	}
	p.boxes = append(p.boxes, box)
	return p.run(ctx, "ADD", id, box.Path())
}

// remove deletes what was added last.
func (p *runtimePlugin) remove(ctx context.Context, id string) error {
	last := len(p.boxes) - 1
	box := p.boxes[last]
	p.boxes = p.boxes[:last]
	_, err := p.run(ctx, "DEL", id, box.Path())
	return errors.Join(err, box.Close())
}

func (p *runtimePlugin) run(ctx context.Context, command, id, netns string) (time.Duration, error) {
	config, err := json.Marshal(map[string]string{"cniVersion": "1.0.0", "name": "bench", "type": "tulle-cni", "runDir": p.node.RunDir, "attachment": p.kind})
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, p.path)
	cmd.Env = []string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + id, "CNI_NETNS=" + netns, "CNI_IFNAME=eth0", "CNI_PATH=" + filepath.Dir(p.path)}
	cmd.Stdin = bytes.NewReader(config)
	start := time.Now()
	out, err := cmd.Output()
	took := time.Since(start)
	if err != nil {
		return took, fmt.Errorf("%s %s: %w: %s", command, id, err, strings.TrimSpace(string(out)))
	}
	return took, nil
}

func (p *runtimePlugin) close() error {
	var errs []error
	for _, b := range p.boxes {
		errs = append(errs, b.Close())
	}
	return errors.Join(errs...)
}
