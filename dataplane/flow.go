package dataplane

import (
	"encoding/binary"
	"net/netip"

	"github.com/tulle-net/tulle/dataplane/conntrack"
	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// lookup finds the packet's flow and moves its state on. What belongs to no flow of its own is known too: an ICMP error,
// which has to quote a live flow of its receiver's, and a later fragment, whose first one was looked up.
func (w *worker) lookup(set *tables.Set, f *packet.Frame) (known bool, v packet.Verdict) {
	if f.Fragment && f.FragmentOffset > 0 {
		return true, packet.None
	}
	if f.IsICMPError() {
		return true, w.related(set, f)
	}
	w.describe(f)
	hit, known := w.engine.Flows.Lookup(&w.flow, w.now)
	if known {
		w.seeFlow(f, hit, true)
	}
	return known, packet.None
}

// commit remembers the flow of a packet that goes on and was not known.
func (w *worker) commit(f *packet.Frame, known bool, v packet.Verdict) packet.Verdict {
	if known || !v.Sent() {
		return v
	}
	hit, result := w.engine.Flows.Insert(&w.flow, conntrack.NAT{}, w.now)
	switch result {
	case conntrack.Full:
		return packet.DropFlowTableFull
	case conntrack.OverQuota:
		return packet.DropFlowQuota
	}
	w.seeFlow(f, hit, false)
	return v
}

// related judges an ICMP error by the packet that it quotes. One that did not leave by the engine is for its sender to judge: flows that are
// known of those that are answered, and no others.
func (w *worker) related(set *tables.Set, f *packet.Frame) packet.Verdict {
	src, dst, proto, srcPort, dstPort, ok := f.Quoted()
	if !ok || src != f.Dst {
		return packet.DropUnrelated
	}
	if w.bypassed(set, f, dst) {
		return packet.None
	}
	quoted := conntrack.Tuple{Src: src, Dst: dst, SrcPort: srcPort, DstPort: dstPort, Proto: proto}
	if _, ok := w.engine.Flows.Find(quoted, w.now); !ok {
		return packet.DropUnrelated
	}
	return packet.None
}

// bypassed says whether the kernel sent by itself what an ICMP error to a pod of this node quotes: to a peer on link, or, if the error comes by
// the TAP, to an address outside the cluster network.
func (w *worker) bypassed(set *tables.Set, f *packet.Frame, quoted netip.Addr) bool {
	if to := set.Lookup(f.Dst); to == nil || to.Kind != tables.Local {
		return false
	}
	return isNative(set, quoted) || w.from == TAP && set.Lookup(quoted) == nil
}

// describe fills w.flow for the frame.
func (w *worker) describe(f *packet.Frame) {
	p := &w.flow
	p.Src, p.Dst, p.Proto = f.Src, f.Dst, f.Proto
	p.SrcPort, p.DstPort = f.Ports()
	p.TCP = conntrack.Segment{}
	if tcp := f.L4Bytes(); f.Proto == packet.ProtoTCP && len(tcp) >= 20 {
		header := min(max(int(tcp[12]>>4)*4, 20), len(tcp))
		p.TCP = conntrack.Segment{
			Seq: binary.BigEndian.Uint32(tcp[4:]), Ack: binary.BigEndian.Uint32(tcp[8:]),
			Window: binary.BigEndian.Uint16(tcp[14:]), Flags: tcp[13],
			Len: len(tcp) - header + f.MoreLen(), Options: tcp[20:header],
		}
	}
}
