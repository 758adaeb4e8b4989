package dataplane

import "github.com/tulle-net/tulle/dataplane/fragment"

// fragmentsVersion is that of Fragments.
const fragmentsVersion = 1

// Fragments is what an engine knows of fragmented datagrams that are under way, for the next one with the same ports.
type Fragments struct {
	Version int               `json:"version"`
	Workers []WorkerFragments `json:"workers,omitempty"`
}

// WorkerFragments are one worker's.
type WorkerFragments struct {
	Out fragment.Handover `json:"out"` // from the TAP and pods
	In  fragment.Handover `json:"in"`  // from the underlay
}

// Left returns what the engine knows of fragmented datagrams, which it knows no more. It is called after Run has returned.
func (e *Engine) Left() Fragments {
	all := Fragments{Version: fragmentsVersion}
	for _, w := range e.workers {
		all.Workers = append(all.Workers, w.left)
	}
	return all
}

// leaveFragments is the last that a worker does.
func (w *worker) leaveFragments() {
	w.begin() // what waited too long is settled here
	w.count.Inherited -= int64(w.outFragments.Held() + w.inFragments.Held())
	w.left = WorkerFragments{Out: w.outFragments.HandOver(), In: w.inFragments.HandOver()}
}

// adoptFragments goes on where the worker of the same number left off. What is of another version or for another number of workers is no use.
func (w *worker) adoptFragments(all Fragments, workers int) {
	if all.Version != fragmentsVersion || len(all.Workers) != workers {
		return
	}
	mine := all.Workers[w.number]
	w.now = w.engine.Clock()
	w.count.Inherited += int64(w.outFragments.Adopt(mine.Out, w.now) + w.inFragments.Adopt(mine.In, w.now))
}
