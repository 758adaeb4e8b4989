package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane"
	"github.com/tulle-net/tulle/dataplane/tables"
	"github.com/tulle-net/tulle/dataplane/tap"
)

// What a holder keeps of each pod's TAP: one descriptor.
const (
	partPod = "pod " // and the name of podLink
	podFit  = "the TAP of a pod"
)

// attachTimeout bounds how long a worker may take to get to the end of its batch.
const attachTimeout = 10 * time.Second

// podTAPs are the TAPs of pods, whose other ends the engine holds, by podLink's names. Its methods are safe for concurrent use.
type podTAPs struct {
	forwarder *forwarder
	publish   func([]*tables.Pod) // makes tables with routes to these; set before run

	changing sync.Mutex // held by who changes which pods there are: engine and tables change one after the other
	mu       sync.Mutex // guards the rest; f.mu may be held
	all      map[string]*podTAP
	adopted  map[string]*tap.Pod // of the daemon before, until it is known whose they are
}

type podTAP struct {
	*tap.Pod
	port    dataplane.PodPort
	leaving bool // no engine that is made now gets it
}

func newPodTAPs(f *forwarder) *podTAPs {
	return &podTAPs{forwarder: f, publish: func([]*tables.Pod) {}, all: map[string]*podTAP{}, adopted: map[string]*tap.Pod{}}
}

// adopt takes over the TAPs that the daemon before left.
func (p *podTAPs) adopt(h *held) {
	for _, name := range h.names(partPod) {
		h.adopt(name, podFit, func(files []int) error {
			if len(files) != 1 {
				return fmt.Errorf("%d descriptors", len(files))
			}
			t, err := tap.AdoptPod(files[0])
			if errors.Is(err, tap.ErrGone) { // with its pod
				return unix.Close(files[0])
			}
			if err == nil {
				p.adopted[strings.TrimPrefix(name, partPod)] = t
			}
			return err
		})
	}
}

// take returns what was adopted for a pod, nil for none.
func (p *podTAPs) take(link string) *tap.Pod {
	defer delete(p.adopted, link)
	return p.adopted[link]
}

// settle lets go of what was adopted for pods that are not known.
func (p *podTAPs) settle() {
	for link, t := range p.adopted {
		slog.Warn("a TAP of the daemon before is of no pod", "link", link)
		t.Close()
	}
	p.adopted = nil
}

// parts are copies of the descriptors, for the holder.
func (p *podTAPs) parts(add func(name, fit string, files []int)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for link, t := range p.all {
		if !t.leaving {
			add(partPod+link, podFit, []int{t.File()})
		}
	}
}

// ports are what an engine begins with.
func (p *podTAPs) ports() (ports []dataplane.PodPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.all {
		if !t.leaving {
			ports = append(ports, t.port)
		}
	}
	return ports
}

// tables are the pods to which there are ports, in the order of these.
func (p *podTAPs) tables() (pods []*tables.Pod) {
	for _, port := range p.ports() {
		pods = append(pods, port.Pod)
	}
	slices.SortFunc(pods, func(a, b *tables.Pod) int { return int(a.Port) - int(b.Port) })
	return pods
}

func (p *podTAPs) has(link string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all[link] != nil
}

// attach gives the engine a port to a pod, and then tables that lead there. The TAP is closed on an error.
func (p *podTAPs) attach(link string, t *tap.Pod, pod tables.Pod) error {
	p.changing.Lock()
	defer p.changing.Unlock()
	engine := p.insert(link, t, &pod)
	if engine != nil {
		ctx, cancel := context.WithTimeout(context.Background(), attachTimeout)
		defer cancel()
		if err := engine.Attach(ctx, dataplane.PodPort{Pod: &pod, Ports: p.at(link).port.Ports}); err != nil {
			p.remove(link)
			return errors.Join(err, t.Close())
		}
	}
	p.publish(p.tables())
	p.forwarder.held.changed()
	return nil
}

// insert gives the pod the least number that is free, and returns the engine that has to know it: nil before the first one runs.
func (p *podTAPs) insert(link string, t *tap.Pod, pod *tables.Pod) *dataplane.Engine {
	f := p.forwarder
	f.mu.Lock()
	defer f.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	taken := map[uint32]bool{}
	for _, other := range p.all {
		taken[other.port.Pod.Port] = true
	}
	for pod.Port = 1; taken[pod.Port]; pod.Port++ {
	}
	ports := make([]dataplane.Port, f.config.workers)
	for i, port := range t.Ports(len(ports)) {
		ports[i] = port
	}
	added := &podTAP{Pod: t, port: dataplane.PodPort{Pod: pod, Ports: ports}}
	p.all[link] = added
	if f.stop == nil {
		if err := f.engine.SetPods([]dataplane.PodPort{added.port}); err != nil {
			slog.Error("no port to a pod", "link", link, "error", err)
		}
		return nil
	}
	return f.engine
}

func (p *podTAPs) at(link string) *podTAP {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all[link]
}

func (p *podTAPs) remove(link string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.all, link)
}

// detach takes a pod's port from tables and engine, and hands over its TAP: nil if there was none.
func (p *podTAPs) detach(link string) (*tap.Pod, error) {
	p.changing.Lock()
	defer p.changing.Unlock()
	t := p.at(link)
	if t == nil {
		return nil, nil
	}
	f := p.forwarder
	f.mu.Lock()
	p.mu.Lock()
	t.leaving = true
	engine := f.engine
	p.mu.Unlock()
	f.mu.Unlock()
	p.publish(p.tables())
	ctx, cancel := context.WithTimeout(context.Background(), attachTimeout)
	defer cancel()
	if err := engine.Detach(ctx, t.port.Pod.Port); err != nil {
		return nil, err
	}
	p.remove(link)
	f.held.changed()
	return t.Pod, nil
}

// close lets go of all TAPs, which stay.
func (p *podTAPs) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, t := range p.all {
		errs = append(errs, t.Close())
	}
	for _, t := range p.adopted {
		errs = append(errs, t.Close())
	}
	return errors.Join(errs...)
}

// inNetns says whether the TAP is in the namespace that a path names. It is not when the path has gone, whoever keeps the namespace.
func inNetns(t *tap.Pod, path string) (bool, error) {
	ns, err := t.Netns()
	if err != nil {
		return false, err
	}
	defer unix.Close(ns)
	var its, named unix.Stat_t
	if err := unix.Fstat(ns, &its); err != nil {
		return false, fmt.Errorf("stat namespace: %w", err)
	}
	if err := unix.Stat(path, &named); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		return false, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return its.Ino == named.Ino && its.Dev == named.Dev, nil
}
