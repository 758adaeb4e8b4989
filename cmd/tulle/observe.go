package main

import (
	"sync"

	"github.com/tulle-net/tulle/dataplane"
)

// observe shows o every packet, in this and every later engine, until the function that it returns was called.
func (f *forwarder) observe(o dataplane.Observer) (stop func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.observers == nil {
		f.observers = map[*dataplane.Observer]func(){}
	}
	f.observers[&o] = f.engine.Observe(o)
	return sync.OnceFunc(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.observers[&o]()
		delete(f.observers, &o)
	})
}

// handOver gives a new engine the observers of the one before it. f.mu is held.
func (f *forwarder) handOver(to *dataplane.Engine) {
	for o := range f.observers {
		f.observers[o] = to.Observe(*o)
	}
}

// observing returns how many observers there are.
func (f *forwarder) observing() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.engine.Observers()
}
