package dataplane

import (
	"net/netip"

	"github.com/tulle-net/tulle/dataplane/conntrack"
	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// touched is what lookups will look for, of one batch; the memory is used again.
type touched struct {
	flows    []conntrack.Tuple
	src, dst []netip.Addr
}

// touch begins to load what the lookups of the batch that was read will look at, in tables that are larger than the CPU's caches.
func (w *worker) touch(side Side, set *tables.Set) {
	flows, routes := w.engine.Flows.Large(), set != nil && set.Large()
	if !flows && !routes {
		return
	}
	t := &w.touched
	t.flows, t.src, t.dst = t.flows[:0], t.src[:0], t.dst[:0]
	var p packet.Peek
	for _, f := range w.rx.Frames {
		if !f.Peek(w.innerAt(side, f), &p) {
			continue
		}
		if flows {
			t.flows = append(t.flows, conntrack.Tuple{Src: p.Src, Dst: p.Dst, SrcPort: p.SrcPort, DstPort: p.DstPort, Proto: p.Proto})
		}
		if routes {
			t.src, t.dst = append(t.src, p.Src), append(t.dst, p.Dst)
		}
	}
	w.engine.Flows.Touch(t.flows)
	if routes {
		set.Touch(t.src, t.dst)
	}
}

// innerAt is where the inner IP header is in a frame as a port handed it over, bytes.
func (w *worker) innerAt(side Side, f *packet.Frame) int {
	switch {
	case side == Underlay || side == Underlay6:
		return w.engine.Codec.InnerAt()
	case f.Detached:
		return 0
	}
	return packet.EthernetLen
}
