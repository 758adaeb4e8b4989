package compare

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/google/pprof/profile"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/bench/result"
)

// profileSeconds is how long the daemons are looked at: a hundred samples of each CPU.
const profileSeconds = 1

// parts are what a worker does, by the functions in which it is. The innermost one of a stack counts.
var parts = []struct{ name, within, method string }{
	{"reading the TAP", "dataplane/tap.", "Read"}, {"writing the TAP", "dataplane/tap.", "Write"},
	{"receiving from the underlay", "encap.", "Read"}, {"sending to the underlay", "encap.", "Write"},
	{"waiting", "dataplane.(*poller)", ""}, {"deciding", "dataplane.(*worker)", ""},
}

// elsewhere is what no worker does: the control plane, and Go's runtime.
const elsewhere = "control plane and runtime"

// profile notes what the daemons do while run runs, which takes longer than profileSeconds. Only in the first round, and only of paths
// that have daemons.
func (s *session) profile(ctx context.Context, run func(time.Duration) (bench.CPUTime, time.Duration, error)) error {
	if len(s.daemons) == 0 || s.round > 1 {
		return nil
	}
	fetched := make([]*profile.Profile, len(s.daemons))
	errs := make([]error, len(s.daemons)+1)
	var all sync.WaitGroup
	for i, d := range s.daemons {
		all.Go(func() { fetched[i], errs[i] = d.profile(ctx) })
	}
	cpu, elapsed, err := run(profileSeconds*time.Second + 300*time.Millisecond)
	errs[len(s.daemons)] = err
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	p := result.Profile{Underlay: s.underlay, Path: s.path, Case: s.current, Busy: cpu.Busy().Seconds() / elapsed.Seconds()}
	if err := split(&p, fetched); err != nil {
		return err
	}
	s.out.Profiles = append(s.out.Profiles, p)
	s.say("%s  %s", s.current, p.Text())
	return nil
}

// profile is the daemon's own.
func (d daemon) profile(ctx context.Context) (*profile.Profile, error) {
	ctx, cancel := context.WithTimeout(ctx, (profileSeconds+5)*time.Second)
	defer cancel()
	b, err := d.node.Ask(ctx, fmt.Sprintf("/debug/pprof/profile?seconds=%d", profileSeconds))
	if err != nil {
		return nil, err
	}
	return profile.ParseData(b)
}

// split says of each part what share of the daemons' CPU time it took, and of that what share in system calls.
func split(p *result.Profile, daemons []*profile.Profile) error {
	spent, inKernel := map[string]int64{}, map[string]int64{}
	var total int64
	for _, d := range daemons {
		at := -1
		for i, kind := range d.SampleType {
			if kind.Type == "cpu" && kind.Unit == "nanoseconds" {
				at = i
			}
		}
		if at < 0 {
			return errors.New("profile: it has no CPU time")
		}
		for _, sample := range d.Sample {
			name, kernel := place(sample)
			spent[name] += sample.Value[at]
			if total += sample.Value[at]; kernel {
				inKernel[name] += sample.Value[at]
			}
		}
	}
	p.Daemons = time.Duration(total).Seconds() / profileSeconds
	for name, t := range spent {
		p.Parts = append(p.Parts, result.Part{Name: name, Share: float64(t) / float64(total), Kernel: float64(inKernel[name]) / float64(t)})
	}
	p.Sort()
	return nil
}

// place is the part that a sample belongs to, and whether it is in a system call.
func place(sample *profile.Sample) (part string, kernel bool) {
	innermost := true
	for _, location := range sample.Location { // the leaf is first
		for _, line := range location.Line {
			function := strings.TrimPrefix(line.Function.Name, "github.com/tulle-net/tulle/")
			if innermost {
				kernel = strings.Contains(function, "yscall")
			}
			innermost = false
			for _, p := range parts {
				if strings.HasPrefix(function, p.within) && strings.HasSuffix(function, p.method) {
					return p.name, kernel
				}
			}
		}
	}
	return elsewhere, kernel
}
