package dataplane

import (
	"context"
	"errors"
	"fmt"

	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// A PodPort is a pod whose interface is a TAP with the engine at its other end.
type PodPort struct {
	Pod *tables.Pod
	// Ports are the same queue for each worker, which all write to it: what they need for one write is their own.
	Ports []Port
}

// SetPods makes all the ports of pods that an engine begins with. It comes before Run.
func (e *Engine) SetPods(all []PodPort) error {
	for _, p := range all {
		for i, w := range e.workers {
			if err := w.attach(p, i); err != nil {
				return err
			}
		}
	}
	return nil
}

// Attach gives the workers a pod's port, each between two batches; one of them reads from it. Tables that lead to it are published after.
func (e *Engine) Attach(ctx context.Context, p PodPort) error {
	for i, w := range e.workers {
		var err error
		if berr := w.atBoundary(ctx, func() {
			if !w.over() {
				err = w.attach(p, i)
			}
		}); berr != nil || err != nil {
			return fmt.Errorf("port %d of worker %d: %w", p.Pod.Port, i, errors.Join(berr, err, e.Detach(context.WithoutCancel(ctx), p.Pod.Port)))
		}
	}
	return nil
}

// Detach takes a pod's port away, after tables without it were published: when it returns nobody uses it.
func (e *Engine) Detach(ctx context.Context, number uint32) error {
	for i, w := range e.workers {
		if err := w.atBoundary(ctx, func() {
			if !w.over() {
				w.detach(number)
			}
		}); err != nil {
			return fmt.Errorf("port %d of worker %d: %w", number, i, err)
		}
	}
	return nil
}

// podPorts are a worker's ports of pods, by their number. The zero value is none.
type podPorts struct {
	all   []*podPort
	dirty []*podPort  // with frames to be written
	from  *tables.Pod // of this turn
}

type podPort struct {
	pod  *tables.Pod
	port Port
	tx   packet.Batch
}

func (p *podPorts) at(number uint32) *podPort {
	if int(number) < len(p.all) {
		return p.all[number]
	}
	return nil
}

// add queues a frame for the port of its pod, and reports whether that is there.
func (p *podPorts) add(f *packet.Frame) bool {
	to := p.at(f.Pod)
	if to == nil {
		return false
	}
	if len(to.tx.Frames) == 0 {
		p.dirty = append(p.dirty, to)
	}
	to.tx.Add(f)
	return true
}

func (p *podPorts) queued() (n uint64) {
	for _, port := range p.dirty {
		for _, f := range port.tx.Frames {
			n += uint64(f.Segments)
		}
	}
	return n
}

// attach adds a port. The worker whose turn it is by number reads from it.
func (w *worker) attach(p PodPort, worker int) error {
	number := p.Pod.Port
	for int(number) >= len(w.pods.all) {
		w.pods.all = append(w.pods.all, nil)
	}
	w.pods.all[number] = &podPort{pod: p.Pod, port: p.Ports[worker]}
	if int(number)%len(p.Ports) != worker {
		return nil
	}
	return w.poller.add(p.Ports[worker].FD(), podIndex+int32(number))
}

// over reports whether the worker has ended: it has no poller any more.
func (w *worker) over() bool {
	select {
	case <-w.ended:
		return true
	default:
		return false
	}
}

func (w *worker) detach(number uint32) {
	if p := w.pods.at(number); p != nil {
		w.poller.remove(p.port.FD())
		w.pods.all[number] = nil
	}
}

// serve takes a batch from a pod's port. One that is gone, with its pod, is not looked at any more: it is the daemon's to find and to detach.
func (w *worker) serve(number uint32) (int, error) {
	from := w.pods.at(number)
	if from == nil {
		return 0, nil // detached since it was found ready
	}
	w.prepare(Pod)
	w.pods.from = from.pod
	n, err := from.port.Read(w.rx)
	if err != nil {
		w.poller.remove(from.port.FD())
	}
	return n, w.work(Pod)
}

// flushPods writes what is queued for pods. A port that is gone refuses it.
func (w *worker) flushPods() {
	for _, to := range w.pods.dirty {
		to.port.Write(&to.tx)
		w.tally(Pod, &to.tx)
	}
	w.pods.dirty = w.pods.dirty[:0]
}
