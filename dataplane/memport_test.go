package dataplane

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// A memFrame is what a memPort hands to its worker or took from it.
type memFrame struct {
	data      []byte
	vnet      packet.VNet
	remote    netip.AddrPort
	tos       uint8
	hint      int
	truncated bool
}

// A memPort is an in-memory Port. It counts frames, segments and bytes by itself, so that the engine's
// counters have something independent to agree with.
type memPort struct {
	fd      int
	refuse  int            // every refuse-th write is refused; 0 for none
	reason  packet.Verdict // of that
	onWrite func()         // called at the start of each Write
	gone    error          // returned by Read
	discard bool           // keep nothing of what is written
	mu      sync.Mutex     // guards the rest: tests look while a worker runs
	in, out []memFrame
	writes  int
	word    [8]byte // for the eventfd
	counted PortCounters
}

func newMemPort(t testing.TB) *memPort {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return &memPort{fd: fd}
}

func (p *memPort) FD() int      { return p.fd }
func (p *memPort) Close() error { return nil }

// put queues frames for the worker.
func (p *memPort) put(frames ...memFrame) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.in = append(p.in, frames...)
	p.signal(true)
}

// signal makes the descriptor readable or not.
func (p *memPort) signal(ready bool) {
	unix.Read(p.fd, p.word[:])
	if ready {
		binary.NativeEndian.PutUint64(p.word[:], 1)
		unix.Write(p.fd, p.word[:])
	}
}

func (p *memPort) Read(b *packet.Batch) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone != nil {
		return 0, p.gone
	}
	n := 0
	for ; n < len(p.in) && n < 64; n++ {
		m := p.in[n]
		slot := b.Slot(len(m.data))
		if slot == nil {
			break
		}
		end := packet.Headroom + copy(slot[packet.Headroom:], m.data)
		b.Claim(end)
		f := b.Append(slot, packet.Headroom, end)
		f.VNet, f.Remote, f.OuterTOS, f.SegmentHint, f.Truncated = m.vnet, m.remote, m.tos, m.hint, m.truncated
		p.counted.FramesIn++
		p.counted.BytesIn += uint64(len(m.data))
	}
	p.in = p.in[:copy(p.in, p.in[n:])]
	if len(p.in) == 0 {
		p.signal(false)
	}
	return n, nil
}

func (p *memPort) Write(b *packet.Batch) error {
	if p.onWrite != nil {
		p.onWrite()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range b.Frames {
		f.Sent, f.Refused, f.SentBytes = 0, 0, 0
		p.writes++
		if p.refuse > 0 && p.writes%p.refuse == 0 {
			f.Refused, f.RefusedAs = f.Segments, p.reason
			continue
		}
		p.write(f)
	}
	return nil
}

// write takes a frame as it is, as a TAP does. What an underlay does to super-packets is encap's to test; here
// they stay whole and count as what they stand for.
func (p *memPort) write(f *packet.Frame) {
	length := len(f.DetachedLink()) + f.Len() + f.MoreLen()
	f.Sent, f.SentBytes = f.Segments, length
	p.counted.FramesOut++
	p.counted.SegmentsOut += uint64(f.Segments)
	p.counted.BytesOut += uint64(length)
	if p.discard {
		return
	}
	p.out = append(p.out, memFrame{data: f.AppendTo(nil), vnet: f.VNet, remote: f.Remote, tos: f.OuterTOS})
}

// taken returns what was written since the last call.
func (p *memPort) taken() []memFrame {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := p.out
	p.out = nil
	return out
}
