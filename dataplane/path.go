package dataplane

import (
	"net/netip"

	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// outbound decides a frame from the TAP: parse, route, encapsulate.
func (w *worker) outbound(set *tables.Set, f *packet.Frame) packet.Verdict {
	if v := f.Parse(); v != packet.None {
		return v
	}
	if f.EtherType == packet.EtherTypeARP {
		return answerARP(set, f)
	}
	if f.Dst.IsMulticast() || f.Dst == broadcast {
		return packet.DropMulticast
	}
	route := set.Lookup(f.Dst)
	if route == nil {
		return packet.DropNoRoute
	}
	switch route.Kind {
	case tables.ToPeer:
		return w.encapsulate(set, route.Peer, f)
	case tables.Local, tables.Host:
		f.SetMACs(set.Node.VTEP, set.Node.Gateway)
		return packet.Delivered
	}
	return packet.DropReject
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

func (w *worker) encapsulate(set *tables.Set, peer *tables.Peer, f *packet.Frame) packet.Verdict {
	f.SetMACs(peer.VTEP, set.Node.VTEP)
	f.CompleteChecksum()
	f.OuterTOS = f.EncapECN()
	f.Remote = peer.Endpoint
	if v := w.codec.Encap(f); v != packet.None {
		return v
	}
	return packet.Encapsulated
}

// answerARP answers for the engine's own address and for what it routes to peers. Probes
// for duplicate addresses (sender 0.0.0.0, RFC 5227) get an answer only for the engine's
// own: everything else belongs to someone who may ask for it.
func answerARP(set *tables.Set, f *packet.Frame) packet.Verdict {
	target, sender, ok := f.ARPTarget()
	if !ok {
		return packet.DropARP
	}
	if target != set.Node.Engine {
		route := set.Lookup(target)
		if sender.IsUnspecified() || route == nil || route.Kind != tables.ToPeer {
			return packet.DropARP
		}
	}
	f.AnswerARP(set.Node.Gateway)
	return packet.ARPAnswered
}

// inbound decides a datagram from the underlay: known peer, decapsulate, parse, source
// check, route.
func (w *worker) inbound(set *tables.Set, f *packet.Frame) packet.Verdict {
	peer := set.PeerAt(f.Remote.Addr())
	if peer == nil {
		return packet.DropUnknownPeer
	}
	if v := w.codec.Decap(f); v != packet.None {
		return v
	}
	if v := f.Parse(); v != packet.None {
		return v
	}
	if v := checkInner(set, peer, f); v != packet.None {
		return v
	}
	if v := f.DecapECN(f.OuterTOS); v != packet.None {
		return v
	}
	if v := f.AdoptOffload(set.Node.MTU, f.SegmentHint); v != packet.None {
		return v
	}
	return packet.Delivered
}

// checkInner holds a decapsulated frame against what the peer may send to this node.
func checkInner(set *tables.Set, peer *tables.Peer, f *packet.Frame) packet.Verdict {
	switch {
	case f.DstMAC() != set.Node.VTEP:
		return packet.DropOtherMAC
	case f.SrcMAC() == set.Node.VTEP:
		return packet.DropOwnMAC
	case f.EtherType != packet.EtherTypeIPv4:
		return packet.DropARP
	case set.Owner(f.Src) != peer:
		return packet.DropInnerSource
	}
	if route := set.Lookup(f.Dst); route == nil || route.Kind != tables.Local && route.Kind != tables.Host {
		return packet.DropInnerDestination
	}
	return packet.None
}
