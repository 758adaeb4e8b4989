package dataplane

import (
	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// answerARP answers for the engine's own address and for what it routes to peers. Probes
// for duplicate addresses (sender 0.0.0.0, RFC 5227) get an answer only for the engine's
// own: everything else belongs to someone who may ask for it.
func (w *worker) answerARP(set *tables.Set, f *packet.Frame) packet.Verdict {
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
	w.turnRound(f, packet.ARPAnswered)
	w.generate(f, packet.Delivered)
	return packet.None
}

// answerND is answerARP for IPv6. Duplicate address detection (from the unspecified address, RFC 4862) is never answered: the
// engine's address is on no interface, and nobody else asks for it but by mistake.
func (w *worker) answerND(set *tables.Set, f *packet.Frame) packet.Verdict {
	target, sender, ok := f.NDTarget()
	if !ok || sender.IsUnspecified() {
		return packet.DropND
	}
	if target != set.Node.Engine6 {
		if route := set.Lookup(target); route == nil || route.Kind != tables.ToPeer {
			return packet.DropND
		}
	}
	if !f.AnswerND(set.Node.Gateway) {
		return packet.DropND
	}
	w.turnRound(f, packet.NDAnswered)
	w.generate(f, packet.Delivered)
	return packet.None
}

// toEngine takes what is for the engine's own address: echo requests, and the answers to this node's probes. peer is who
// sent it, nil for the node and its pods.
func (w *worker) toEngine(set *tables.Set, peer *tables.Peer, f *packet.Frame) packet.Verdict {
	if f.Segments != 1 {
		return packet.DropEngine
	}
	if id, seq, ok := f.EchoReply(); ok && peer != nil {
		if w.engine.Probe != nil {
			w.engine.Probe(peer.Endpoint.Addr(), id, seq, f.SegmentLen(), w.now)
		}
		return packet.ProbeAnswered
	}
	if !f.AnswerEcho() {
		return packet.DropEngine
	}
	w.turnRound(f, packet.EchoAnswered)
	w.reply(set, f)
	return packet.None
}

// reply sends a packet of the engine's own to its destination.
func (w *worker) reply(set *tables.Set, f *packet.Frame) {
	route := set.Lookup(f.Dst)
	switch {
	case route == nil || route.Kind == tables.Reject:
		w.generate(f, packet.DropNoRoute)
	case route.Kind == tables.ToPeer:
		w.generate(f, w.encapsulate(set, route.Peer, f))
	case route.Pod != nil:
		f.Pod = route.Pod.Port
		f.SetMACs(route.Pod.MAC, route.Pod.Gateway)
		w.generate(f, packet.Delivered)
	default:
		f.SetMACs(set.Node.VTEP, set.Node.Gateway)
		w.generate(f, packet.Delivered)
	}
}
