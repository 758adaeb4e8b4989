package dataplane

import (
	"net/netip"

	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// DHCP servers' ports, of IPv4 and of IPv6.
const (
	dhcpServer  = 67
	dhcpServer6 = 547
)

// fromPod decides a frame from a pod's port: it must be the pod's own. The gateway is answered for; what goes on goes the way of what the
// TAP hands over. The order is that of the checks at a pod's link (control/pin).
func (w *worker) fromPod(set *tables.Set, f *packet.Frame) packet.Verdict {
	if v := f.Parse(); v != packet.None {
		return v
	}
	pod := w.pods.from
	if f.SrcMAC() != pod.MAC {
		return packet.DropPodMAC
	}
	if f.EtherType == packet.EtherTypeARP {
		return w.podARP(pod, f)
	}
	if v := checkPod(pod, f); v != packet.None {
		return v
	}
	switch {
	case f.IsND():
		return w.podND(pod, f)
	case f.Dst.IsMulticast() || f.Dst == broadcast:
		return packet.DropMulticast
	case f.Dst == pod.Gateway4 || f.Dst == pod.Gateway6:
		return w.toGateway(pod, f)
	case f.Dst.Is6() && f.Martian() || f.Dst.IsLoopback() || f.Dst.IsUnspecified():
		return packet.DropMartian
	case f.Fragment:
		return w.follow(w.outFragments, set, f, (*worker).forwardOut)
	}
	return w.forwardOut(set, f)
}

// checkPod holds an IP packet against what the pod is. Its link-local address, and none at all, it needs for neighbour discovery and for
// the gateway.
func checkPod(pod *tables.Pod, f *packet.Frame) packet.Verdict {
	v6 := f.Src.Is6()
	switch {
	case f.Src == pod.Addr4 || f.Src == pod.Addr6:
	case v6 && f.Src == linkLocal(pod.MAC):
	case v6 && f.Src.IsUnspecified() && f.Dst.IsMulticast():
	default:
		return packet.DropPodSource
	}
	if f.Proto == packet.ProtoUDP && f.FragmentOffset == 0 {
		if port, _ := f.Ports(); !v6 && port == dhcpServer || v6 && port == dhcpServer6 {
			return packet.DropPodDHCP
		}
	}
	return packet.None
}

// podARP answers who asks for the gateway.
func (w *worker) podARP(pod *tables.Pod, f *packet.Frame) packet.Verdict {
	mac, sender, ok := f.ARPFrom()
	if !ok || mac != pod.MAC || sender != pod.Addr4 && !sender.IsUnspecified() {
		return packet.DropPodARP
	}
	if target, _, asks := f.ARPTarget(); !asks || target != pod.Gateway4 || sender.IsUnspecified() {
		return packet.DropARP
	}
	f.AnswerARP(pod.Gateway)
	w.answer(pod, f, packet.ARPAnswered)
	return packet.None
}

// podND is podARP for IPv6. What a pod advertises of its own addresses nobody has asked for.
func (w *worker) podND(pod *tables.Pod, f *packet.Frame) packet.Verdict {
	if f.Advertises(pod.Addr6, linkLocal(pod.MAC)) {
		return packet.DropPodND
	}
	target, sender, ok := f.NDTarget()
	if !ok || target != pod.Gateway6 || sender.IsUnspecified() || !f.AnswerND(pod.Gateway) {
		return packet.DropND
	}
	w.answer(pod, f, packet.NDAnswered)
	return packet.None
}

// toGateway takes echo requests.
func (w *worker) toGateway(pod *tables.Pod, f *packet.Frame) packet.Verdict {
	if f.Segments != 1 || !f.AnswerEcho() {
		return packet.DropEngine
	}
	w.answer(pod, f, packet.EchoAnswered)
	return packet.None
}

// answer sends a frame, which holds the answer to what it was, back to its pod.
func (w *worker) answer(pod *tables.Pod, f *packet.Frame, v packet.Verdict) {
	w.turnRound(f, v)
	f.Pod = pod.Port
	f.SetMACs(pod.MAC, pod.Gateway)
	w.generate(f, packet.Delivered)
}

// linkLocal is the link-local address that Linux gives an interface with the MAC (RFC 4291 appendix A).
func linkLocal(m packet.MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
}
