package claim

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"
)

// A world is some nodes on a fake clock and a network that loses, delays and doubles what they send. Everything in it follows
// from the seed.
type world struct {
	seed  uint64
	rng   *rand.Rand
	flaws flaws
	now   time.Duration
	nodes []*simNode
	post  post
	sent  int // orders messages of one arrival time

	pools      Pools
	quarantine time.Duration
	loss       float64
	delay      time.Duration // up to this
	twice      float64
	cut        map[[2]int]bool // from, to
	severe     bool            // partitions and pauses happen
	copies     bool            // clones happen
	disturbed  time.Duration   // last time that something kept news from travelling
	parted     time.Duration   // last time that links were cut or nodes stood still
	raised     map[netip.Prefix]raised
	log        []string
	bad        string // the first violation
	wordy      bool   // letters are logged
	reclaim    time.Duration
	majority   bool // only more than half of all nodes claim
}

// raised is when a fence rose first, anywhere.
type raised struct {
	number  uint64
	at      time.Duration
	unknown time.Duration // when no running node knew of it last
}

type mail struct {
	at       time.Duration
	n        int
	from, to int
	id       NodeID // of the receiver, for letters
	records  []*Record
	fences   Fences
	ask      *Request
	answer   *Answer
}

type post []mail

func (p post) Len() int           { return len(p) }
func (p post) Less(i, j int) bool { return p[i].at < p[j].at || p[i].at == p[j].at && p[i].n < p[j].n }
func (p post) Swap(i, j int)      { p[i], p[j] = p[j], p[i] }
func (p *post) Push(x any)        { *p = append(*p, x.(mail)) }
func (p *post) Pop() any {
	last := (*p)[len(*p)-1]
	*p = (*p)[:len(*p)-1]
	return last
}

func (w *world) note(format string, args ...any) {
	w.log = append(w.log, fmt.Sprintf("%8.3f ", w.now.Seconds())+fmt.Sprintf(format, args...))
}

func (w *world) violated(invariant, format string, args ...any) {
	if w.bad == "" {
		w.bad = invariant + ": " + fmt.Sprintf(format, args...)
		w.note("VIOLATION %s", w.bad)
	}
}

func (w *world) linked(i, j int) bool { return !w.cut[[2]int{i, j}] }

func (w *world) send(from, to int, m mail, sure bool) {
	if from == to || !w.linked(from, to) || !sure && w.rng.Float64() < w.loss {
		return
	}
	m.from, m.to = from, to
	for range 1 + b2i(w.rng.Float64() < w.twice) {
		m.at, m.n = w.now+time.Duration(w.rng.Int64N(int64(w.delay)))+time.Millisecond, w.sent
		w.sent++
		heap.Push(&w.post, m)
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

const simStep = 50 * time.Millisecond

// step lets 50 ms pass.
func (w *world) step() {
	w.now += simStep
	for _, n := range w.nodes {
		if n.suspended && w.now < n.frozen {
			n.stopped += simStep
		}
	}
	for len(w.post) > 0 && w.post[0].at <= w.now {
		m := heap.Pop(&w.post).(mail)
		if to := w.nodes[m.to]; to.running() {
			to.receive(m)
		}
	}
	for _, n := range w.nodes {
		if !n.running() {
			continue
		}
		for _, other := range w.nodes {
			if other != n && other.running() && w.linked(n.slot, other.slot) && w.linked(other.slot, n.slot) {
				n.seen[other.id] = w.now
			}
		}
	}
	for _, n := range w.nodes {
		if !n.running() || w.now < n.next {
			continue
		}
		n.next = w.now + 200*time.Millisecond + time.Duration(w.rng.IntN(3))*simStep
		n.join()
		n.turn()
		for range 2 {
			w.send(n.slot, w.rng.IntN(len(w.nodes)), n.state(), false)
		}
	}
	w.check()
}

func (w *world) history() string {
	return fmt.Sprintf("seed %d: %s\n%s", w.seed, w.bad, strings.Join(w.log, "\n"))
}
