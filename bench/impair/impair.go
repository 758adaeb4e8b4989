// Package impair is a bad wire: a forwarder between two network devices that loses, duplicates, reorders, delays and corrupts
// frames, each with a probability of its own, decided by a seeded generator. It stands in for netem where a kernel has none.
//
// It owns two AF_PACKET sockets (packet(7)) and what it holds back, never a device, a namespace or a route. The devices must
// be ends of links that nobody else forwards between, with checksum and segmentation offloads off on whatever sends to them:
// a frame with an unfinished checksum would be corrupted unnoticed, and a super-packet counts as one frame. A veth on a busy
// processor drops frames that it has taken: its own counters say how many.
package impair

import (
	"fmt"
	"math/rand/v2"
	"time"
)

const (
	ethernetHeader = 14 // bytes
	// defaultHold lets a few frames of a busy link pass.
	defaultHold = 5 * time.Millisecond
	// maxHeld bounds what waits in one direction, as a queue's length does.
	maxHeld = 1 << 16
)

// Spec says what happens to the frames of one direction. Probabilities are 0 to 1 for each frame and independent of each
// other. The zero value forwards all as they come.
type Spec struct {
	Seed      uint64
	Loss      float64
	Duplicate float64       // send twice, in a row
	Reorder   float64       // hold back for Hold, so that what comes meanwhile overtakes
	Corrupt   float64       // flip one bit behind the Ethernet header, of IP frames only: ARP has no checksum
	Delay     time.Duration // of every frame
	Jitter    time.Duration // up to this much more, at random, but nothing overtakes for it
	Hold      time.Duration // 5 ms if 0
}

// Check says what is wrong with s.
func (s Spec) Check() error {
	for _, p := range []struct {
		name  string
		value float64
	}{{"loss", s.Loss}, {"duplication", s.Duplicate}, {"reordering", s.Reorder}, {"corruption", s.Corrupt}} {
		if !(p.value >= 0 && p.value <= 1) {
			return fmt.Errorf("impair: probability of %s is %v: must be 0 to 1", p.name, p.value)
		}
	}
	if s.Delay < 0 || s.Jitter < 0 || s.Hold < 0 {
		return fmt.Errorf("impair: delay %v, jitter %v, hold %v: must not be negative", s.Delay, s.Jitter, s.Hold)
	}
	return nil
}

// Stats counts the frames of one direction: In + Duplicated = Out + Lost + Refused + Held.
type Stats struct {
	In         uint64
	Out        uint64
	Lost       uint64 // on purpose
	Duplicated uint64
	Reordered  uint64 // held back; a duplicate goes with its original
	Corrupted  uint64 // of those that went out or will
	Refused    uint64 // not on purpose: by the kernel, or too many held
	Missed     uint64 // not on purpose: never In, the socket had no room
	Held       uint64
}

// line is one direction: what it decides and what it holds back. Time is an argument.
type line struct {
	spec   Spec
	random *rand.Rand
	held   queue
	last   time.Time // when the last of those in order is due
	serial uint64
	stats  Stats
}

func newLine(s Spec) *line {
	if s.Hold == 0 {
		s.Hold = defaultHold
	}
	// The second word keeps it apart from other generators of the same seed.
	return &line{spec: s, random: rand.New(rand.NewPCG(s.Seed, 0x696d70616972))}
}

func (l *line) happens(probability float64) bool {
	return probability > 0 && l.random.Float64() < probability
}

// admit takes a frame that came in and copies it if it is kept.
func (l *line) admit(f []byte, now time.Time) {
	l.stats.In++
	if l.happens(l.spec.Loss) {
		l.stats.Lost++
		return
	}
	due := now.Add(l.spec.Delay)
	if l.spec.Jitter > 0 {
		due = due.Add(time.Duration(l.random.Int64N(int64(l.spec.Jitter))))
	}
	if due.Before(l.last) {
		due = l.last
	}
	if l.happens(l.spec.Reorder) {
		l.stats.Reordered++
		due = due.Add(l.spec.Hold)
	} else {
		l.last = due
	}
	copies := 1
	if l.happens(l.spec.Duplicate) {
		l.stats.Duplicated++
		copies = 2
	}
	for range copies {
		l.hold(f, due)
	}
}

func (l *line) hold(f []byte, due time.Time) {
	if len(l.held) >= maxHeld {
		l.stats.Refused++
		return
	}
	f = append([]byte{}, f...)
	if isIP(f) && l.happens(l.spec.Corrupt) {
		bit := l.random.IntN((len(f) - ethernetHeader) * 8)
		f[ethernetHeader+bit/8] ^= 1 << (bit % 8)
		l.stats.Corrupted++
	}
	l.serial++
	l.held.push(heldFrame{f, due, l.serial})
	l.stats.Held++
}

// next gives a frame whose time has come, nil if there is none. It counts as held until sent.
func (l *line) next(now time.Time) []byte {
	if len(l.held) == 0 || l.held[0].due.After(now) {
		return nil
	}
	return l.held.pop().frame
}

// sent says what became of the frame that next gave.
func (l *line) sent(ok bool) {
	l.stats.Held--
	if ok {
		l.stats.Out++
	} else {
		l.stats.Refused++
	}
}

// wait is how long until the next frame is due, negative if none is held.
func (l *line) wait(now time.Time) time.Duration {
	if len(l.held) == 0 {
		return -1
	}
	return max(0, l.held[0].due.Sub(now))
}

// isIP says that a frame carries IPv4 or IPv6, and something of it.
func isIP(f []byte) bool {
	return len(f) > ethernetHeader && (f[12] == 0x08 && f[13] == 0x00 || f[12] == 0x86 && f[13] == 0xdd)
}
