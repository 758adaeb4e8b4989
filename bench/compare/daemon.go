package compare

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/tulle-net/tulle/scripts/lab"
)

// daemon is one of the path's.
type daemon struct{ node lab.Node }

// metricsAddr is the daemon's default.
const metricsAddr = "127.0.0.1:9470"

// usage is what daemons have used since they began, but for memory, which is what they have now.
type usage struct {
	allocs, cpu, memory float64 // objects, seconds, bytes
}

// look adds up the path's daemons.
func (s *session) look(sum *usage) error {
	for _, d := range s.daemons {
		if err := d.look(sum); err != nil {
			return fmt.Errorf("metrics of %s: %w", d.node.Namespace, err)
		}
	}
	return nil
}

// controlPeriod is in what time a daemon's control plane has looked at everything once, with some to spare.
const controlPeriod = 2200 * time.Millisecond

// spent is what the daemons use while run runs, which takes about window. What their control planes allocate without it, before or after, in
// as long, or in a period of theirs if that is longer, is not the packets': the more of both is taken off, with what the looks themselves
// take. Without daemons it is nothing.
func (s *session) spent(ctx context.Context, window time.Duration, run func() error) (usage, error) {
	if len(s.daemons) == 0 {
		return usage{}, run()
	}
	idle := func() error { sleep(ctx, max(window, controlPeriod)); return nil }
	var seen [4]usage
	for i, step := range []func() error{nil, idle, run, idle} {
		if step != nil {
			if err := step(); err != nil {
				return usage{}, err
			}
		}
		if err := s.look(&seen[i]); err != nil {
			return usage{}, err
		}
	}
	allocs := func(i int) float64 { return seen[i].allocs - seen[i-1].allocs }
	return usage{allocs: max(allocs(2)-max(allocs(1), allocs(3)), 0), cpu: seen[2].cpu - seen[1].cpu, memory: seen[2].memory}, nil
}

func (d daemon) look(sum *usage) error {
	var c net.Conn
	err := lab.In(d.node.Namespace, func() (err error) { // the socket belongs where it is made
		c, err = net.DialTimeout("tcp", metricsAddr, time.Second)
		return err
	})
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, "GET /metrics HTTP/1.0\r\n\r\n"); err != nil {
		return err
	}
	return sum.add(c)
}

// atRest is what a daemon takes while nothing is asked of it, milliseconds of CPU a second, and what it has used by then.
func (d daemon) atRest(ctx context.Context) (rest float64, used usage, err error) {
	var before usage
	if err := d.look(&before); err != nil {
		return 0, used, err
	}
	start := time.Now()
	sleep(ctx, 3*time.Second)
	err = d.look(&used)
	return (used.cpu - before.cpu) * 1000 / time.Since(start).Seconds(), used, err
}

// add reads Prometheus' text format.
func (u *usage) add(text io.Reader) error {
	want := map[string]*float64{"go_memstats_mallocs_total": &u.allocs, "process_cpu_seconds_total": &u.cpu, "process_resident_memory_bytes": &u.memory}
	found := 0
	s := bufio.NewScanner(text)
	for s.Scan() {
		name, number, _ := strings.Cut(s.Text(), " ")
		sum := want[name]
		if sum == nil {
			continue
		}
		v, err := strconv.ParseFloat(number, 64)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		*sum += v
		found++
	}
	if err := s.Err(); err != nil {
		return err
	}
	if found != len(want) {
		return fmt.Errorf("%d of %d metrics", found, len(want))
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
