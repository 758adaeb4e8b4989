package dataplane

import (
	"net/netip"

	"github.com/tulle-net/tulle/dataplane/fragment"
	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// outbound decides a frame from the TAP: parse, answer what is asked of the engine, flow, route, encapsulate.
func (w *worker) outbound(set *tables.Set, f *packet.Frame) packet.Verdict {
	if v := f.Parse(); v != packet.None {
		return v
	}
	switch {
	case f.EtherType == packet.EtherTypeARP:
		return w.answerARP(set, f)
	case f.IsND():
		return w.answerND(set, f)
	case f.Dst.IsMulticast() || f.Dst == broadcast:
		return packet.DropMulticast
	case f.Martian():
		return packet.DropMartian
	case f.Fragment:
		return w.follow(w.outFragments, set, f, (*worker).forwardOut)
	}
	return w.forwardOut(set, f)
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// forwardOut looks up flow and route. The flow is remembered only when the packet goes on.
func (w *worker) forwardOut(set *tables.Set, f *packet.Frame) packet.Verdict {
	known, v := w.lookup(set, f)
	if v != packet.None {
		return v
	}
	route := set.Lookup(f.Dst)
	w.seeRoute(f, route)
	switch {
	case route == nil && w.from == Pod: // outside of the cluster network, or another address of the node: the kernel's to route
		v = w.toNode(set, nil, f)
	case route == nil:
		return w.complain(set, f, packet.DropNoRoute, 0)
	case route.Kind == tables.Reject && isEngine(set, f.Dst):
		return w.toEngine(set, set.Owner(f.Src), f) // a peer's, if it came without encapsulation
	case w.from == Pod && leavesNatively(set, route, f): // the kernel's to send, as it does what other pods send there
		v = w.toNode(set, nil, f)
	case route.Kind == tables.Reject:
		return w.complain(set, f, packet.DropReject, 0)
	case route.Kind == tables.ToPeer:
		v = w.toPeer(set, route.Peer, f)
	default:
		v = w.toNode(set, route.Pod, f)
	}
	return w.commit(f, known, v)
}

// toNode hands a packet to a pod's port, or, where pod is nil, to the kernel. Between pods with ports the engine is the only router.
func (w *worker) toNode(set *tables.Set, pod *tables.Pod, f *packet.Frame) packet.Verdict {
	if pod == nil {
		f.SetMACs(set.Node.VTEP, set.Node.Gateway)
		return packet.Delivered
	}
	if w.from == Pod {
		if v := w.spend(set, f, 1); v != packet.None {
			return v
		}
	}
	f.Pod = pod.Port
	f.SetMACs(pod.MAC, pod.Gateway)
	return packet.Delivered
}

// toPeer holds the packet against the path, and encapsulates it.
func (w *worker) toPeer(set *tables.Set, peer *tables.Peer, f *packet.Frame) packet.Verdict {
	if v := w.hop(set, f); v != packet.None {
		return v
	}
	if mtu := pathMTU(peer, f); f.SegmentLen() > mtu && f.DontFragment() {
		return w.complain(set, f, packet.DropTooBig, mtu)
	}
	return w.encapsulate(set, peer, f)
}

// hop makes the tunnel's end a hop where it is one, and the engine one where it is a pod's gateway. With VXLAN the rest is left to
// the kernels' routing on both sides.
func (w *worker) hop(set *tables.Set, f *packet.Frame) packet.Verdict {
	hops := 0
	if w.engine.DecrementTTL {
		hops++
	}
	if w.from == Pod {
		hops++
	}
	return w.spend(set, f, hops)
}

// spend takes hops off the TTL. One of 0 is never forwarded (RFC 1812 section 5.3.1).
func (w *worker) spend(set *tables.Set, f *packet.Frame, hops int) packet.Verdict {
	if ttl := int(f.TTL()); ttl == 0 || ttl <= hops {
		return w.complain(set, f, packet.DropTTL, 0)
	}
	for range hops {
		f.DecrementTTL()
	}
	return packet.None
}

// minMTU6 is what every IPv6 path must take, in fragments of the outer packet if need be (RFC 8200 section 5).
const minMTU6 = 1280

func pathMTU(peer *tables.Peer, f *packet.Frame) int {
	if f.EtherType == packet.EtherTypeIPv6 {
		return max(peer.MTU, minMTU6)
	}
	return peer.MTU
}

func (w *worker) encapsulate(set *tables.Set, peer *tables.Peer, f *packet.Frame) packet.Verdict {
	f.SetMACs(peer.VTEP, set.Node.VTEP)
	f.CompleteChecksum()
	f.OuterTOS = f.EncapTOS(w.engine.CopyDSCP)
	f.Remote = peer.Endpoint
	if isData(f) {
		peer.Activity.Carry(w.now)
	}
	if v := w.engine.Codec.Encap(f); v != packet.None {
		return v
	}
	w.seePeer(AtEncap, f, peer)
	return packet.Encapsulated
}

// inbound decides a datagram from an underlay: known peer, decapsulate, parse, source check, flow.
func (w *worker) inbound(set *tables.Set, f *packet.Frame) packet.Verdict {
	peer := set.PeerAt(f.Remote.Addr())
	if peer == nil {
		return packet.DropUnknownPeer
	}
	w.cameFrom(peer)
	if v := w.engine.Codec.Decap(f); v != packet.None {
		return v
	}
	if v := f.Parse(); v != packet.None {
		return v
	}
	if v := checkInner(set, peer, f); v != packet.None {
		return v
	}
	peer.Activity.Hear(w.now, isData(f))
	if v := f.DecapECN(f.OuterTOS); v != packet.None {
		return v
	}
	if f.Fragment {
		w.seePeer(AtDecap, f, peer)
		return w.follow(w.inFragments, set, f, (*worker).forwardIn)
	}
	if v := f.AdoptOffload(set.Node.Limit(f.Src), set.Node.MTU, f.SegmentHint); v != packet.None {
		return v
	}
	if v := f.CheckL4(); v != packet.None {
		return v
	}
	w.join(f)
	w.seePeer(AtDecap, f, peer)
	return w.forwardIn(set, f)
}

// checkInner holds a decapsulated frame against what the peer may send to this node.
func checkInner(set *tables.Set, peer *tables.Peer, f *packet.Frame) packet.Verdict {
	switch {
	case !f.Detached && f.DstMAC() != set.Node.VTEP:
		return packet.DropOtherMAC
	case !f.Detached && f.SrcMAC() == set.Node.VTEP:
		return packet.DropOwnMAC
	case f.EtherType == packet.EtherTypeARP:
		return packet.DropARP
	case f.IsND():
		return packet.DropND
	case f.Martian():
		return packet.DropMartian
	case set.Owner(f.Src) != peer:
		return packet.DropInnerSource
	}
	route := set.Lookup(f.Dst)
	switch {
	case route == nil || route.Kind == tables.ToPeer || route.Kind == tables.Reject && !isEngine(set, f.Dst):
		return packet.DropInnerDestination
	case route.Kind == tables.Host && f.Proto == packet.ProtoUDP && isTunnel(set, f):
		return packet.DropNested
	}
	return packet.None
}

// isTunnel says whether a UDP packet is one of the tunnel's own kind.
func isTunnel(set *tables.Set, f *packet.Frame) bool {
	_, port := f.Ports()
	return port == set.Node.Port
}

// isData says whether a packet is traffic, and not what nodes and people find out with whether there is a path.
func isData(f *packet.Frame) bool {
	return f.Proto != packet.ProtoICMP && f.Proto != packet.ProtoICMPv6
}

// leavesNatively is isNative of a destination by its route, which knows it but where there is no tunnel.
func leavesNatively(set *tables.Set, route *tables.Route, f *packet.Frame) bool {
	return route.Kind == tables.ToPeer && route.Peer.Native || route.Kind == tables.Reject && isNative(set, f.Dst)
}

// isNative says whether the kernel sends to an address of another node by itself.
func isNative(set *tables.Set, a netip.Addr) bool {
	owner := set.Owner(a)
	return owner != nil && owner.Native
}

func isEngine(set *tables.Set, a netip.Addr) bool {
	return a == set.Node.Engine || a == set.Node.Engine6
}

// forwardIn hands a packet that a peer may send to whom it is for: the engine, or the kernel's side of the TAP.
func (w *worker) forwardIn(set *tables.Set, f *packet.Frame) packet.Verdict {
	if isEngine(set, f.Dst) {
		return w.toEngine(set, set.Owner(f.Src), f)
	}
	if v := w.hop(set, f); v != packet.None {
		return v
	}
	known, v := w.lookup(set, f)
	if v != packet.None {
		return v
	}
	if pod := set.PodAt(f.Dst); pod != nil {
		v = w.toNode(set, pod, f)
	} else if v = packet.Delivered; f.Detached {
		f.SetMACs(set.Node.VTEP, set.Node.Gateway)
	}
	return w.commit(f, known, v)
}

// follow makes the fragments of a datagram share the verdict of the first one, which next decides. Those that came before
// it wait in the tracker. None says that the frame waits or is settled.
func (w *worker) follow(t *fragment.Tracker, set *tables.Set, f *packet.Frame, next func(*worker, *tables.Set, *packet.Frame) packet.Verdict) packet.Verdict {
	action, v := t.Judge(f, w.now)
	switch action {
	case fragment.Held:
		return packet.None
	case fragment.Drop:
		return v
	case fragment.Pass:
		return next(w, set, f)
	}
	v = next(w, set, f)
	w.settle(f, v)
	for _, waiting := range t.Decided(v) {
		fate := v
		w.sighting = Sighting{Worker: w.number, Peer: w.sighting.Peer}
		if v.Sent() {
			fate = next(w, set, waiting)
		}
		w.settle(waiting, fate)
	}
	return packet.None
}
