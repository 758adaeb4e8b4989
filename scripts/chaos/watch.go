package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/tulle-net/tulle/scripts/lab"
)

// size is what a daemon has at a moment.
type size struct{ goroutines, descriptors, memory int } // memory is resident, KiB, without the flow table: that is shared, has its bound, and is used page by page

// growth is the most that any daemon grew from a minute after its start on.
type growth struct {
	Goroutines  int `json:"goroutines"`
	Descriptors int `json:"descriptors"`
	Memory      int `json:"memory"` // KiB
	Looks       int `json:"looks"`
}

// What a daemon may have more after a while: the noise of requests, and of the garbage collector's pace.
const (
	mayGrow       = 16
	mayGrowMemory = 32 << 10 // KiB
	warmUp        = time.Minute
)

func (g growth) String() string {
	return fmt.Sprintf("%d goroutines, %d descriptors, %d KiB of memory (%d looks at daemons that ran for a minute or more)", g.Goroutines, g.Descriptors, g.Memory, g.Looks)
}

func (g growth) failures() (all []string) {
	if g.Goroutines > mayGrow || g.Descriptors > mayGrow || g.Memory > mayGrowMemory {
		all = append(all, "a daemon grows: "+g.String())
	}
	return all
}

// watch follows the daemons' sizes, each process by itself.
type watch struct {
	lab   *lab.Lab
	began map[int]time.Time
	first map[int]size
	most  growth
}

func newWatch(l *lab.Lab) *watch { return &watch{l, map[int]time.Time{}, map[int]size{}, growth{}} }

func (w *watch) growth() growth { return w.most }

// look takes the sizes of daemons that have run long enough. One that is down is passed over: whether it comes back is another's question.
func (w *watch) look() error {
	for _, n := range w.lab.Nodes() {
		if !n.Alive {
			continue
		}
		if w.began[n.PID].IsZero() {
			w.began[n.PID] = time.Now()
		}
		if time.Since(w.began[n.PID]) < warmUp {
			continue
		}
		now, err := sizeOf(n)
		if err != nil {
			return fmt.Errorf("look at %s: %w", n.Name, err)
		}
		first, known := w.first[n.PID]
		if !known {
			w.first[n.PID] = now
			continue
		}
		w.most = growth{max(w.most.Goroutines, now.goroutines-first.goroutines), max(w.most.Descriptors, now.descriptors-first.descriptors),
			max(w.most.Memory, now.memory-first.memory), w.most.Looks + 1}
	}
	return nil
}

func sizeOf(n lab.Node) (s size, err error) {
	b, err := ask(n, "/debug/pprof/goroutine?debug=1")
	if err != nil {
		return s, err
	}
	if _, err := fmt.Sscanf(string(b), "goroutine profile: total %d", &s.goroutines); err != nil {
		return s, fmt.Errorf("goroutines: %w", err)
	}
	proc := filepath.Join("/proc", strconv.Itoa(n.PID))
	open, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		return s, err
	}
	s.descriptors = len(open)
	status, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		return s, err
	}
	for line := range strings.Lines(string(status)) {
		fmt.Sscanf(line, "RssAnon: %d kB", &s.memory)
	}
	return s, nil
}

// ask reads from a daemon's local API.
func ask(n lab.Node, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return n.Ask(ctx, path)
}

func askJSON(n lab.Node, path string, v any) error {
	b, err := ask(n, path)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	return nil
}
