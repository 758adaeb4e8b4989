package packet

// causes say in one sentence each what happened, and for a drop what a person can look at. The packet, the peer and the
// numbers stand beside them wherever they are shown.
var causes = [NumVerdicts]string{
	None: "it is still on its way: a fragment that waits for the first one of its datagram, or a packet not seen to the end",

	Encapsulated:  "sent to a peer on the underlay",
	Delivered:     "handed to this node's kernel through the TAP, for a pod or for the node itself",
	ARPAnswered:   "used up: an ARP request for an address that the engine answers for",
	NDAnswered:    "used up: a neighbour solicitation for an address that the engine answers for",
	EchoAnswered:  "used up: an echo request to the engine's own address; the reply is a packet of its own",
	ProbeAnswered: "used up: the answer to a probe of this node's, from the path MTU search or from tulle ping",

	DropNoTables:       "this node has no tables yet and forwards nothing: is its subnet confirmed (not ready in tulle status)?",
	DropReadTruncated:  "it was longer than the read buffer or came without its whole metadata: does something on the TAP or the underlay send more than 64 KiB?",
	DropFrameTruncated: "it ends inside a header, or before the length that a header claims: it was cut or forged on its way",
	DropEtherType:      "it is neither IP nor ARP: the network routes IP and carries nothing else",
	DropARP:            "it is an ARP message that the engine does not answer: a reply, one for an address of this node's own subnet, or one from a peer",
	DropND:             "it is a neighbour discovery message that the engine does not answer: one for an address of this node's own subnet, a duplicate address check, or one from a peer",
	DropIPHeader:       "its IP version, header length or total length is impossible: it was damaged on its way or forged",
	DropIPChecksum:     "its IPv4 header checksum is wrong: it was damaged on its way, or a device along it computes checksums wrongly",
	DropExtension:      "its IPv6 extension headers are malformed, forbidden or too many",
	DropL4Checksum:     "its TCP, UDP or ICMP checksum is wrong: it was damaged on its way, or a checksum offload of the sender's was left undone",
	DropFragmentTiny:   "it is a first fragment without its whole TCP, UDP or ICMP header, or one that could overwrite it (RFC 1858, RFC 7112): it was forged",
	DropOffload:        "its offload metadata contradicts its headers: which driver or kernel made this super-packet?",
	DropMulticast:      "its destination is multicast or broadcast: the network is routed and carries neither",
	DropMartian:        "its source or destination is never forwarded (loopback, link-local, unspecified, a multicast source): which process is bound to such an address?",

	DropPodMAC:    "it came from a pod whose MAC is not its source: which process in the pod makes frames of its own, or changed the MAC?",
	DropPodSource: "it came from a pod that does not have its IP source: which process in the pod uses a foreign address, or routes for others?",
	DropPodARP:    "it is ARP from a pod in the name of somebody else: which process in the pod makes frames of its own?",
	DropPodND:     "it is a router advertisement, a redirect or an advertisement for a foreign address from a pod: which process in the pod acts as router?",
	DropPodDHCP:   "it came from a pod and a DHCP server's port: pods are no DHCP servers",

	DropFragmentOverlap: "it overlaps or repeats another fragment of its datagram (RFC 5722): it was duplicated on its way or forged",
	DropFragmentOrphan:  "the first fragment of its datagram did not come in time: look for loss or reordering on the underlay",
	DropFragmentMemory:  "it came before the first fragment of its datagram, and too many such fragments wait already: look for loss, reordering or a flood of fragments",

	DropUnknownPeer:      "its outer source is no node that this one knows: is the sender missing in this node's tulle peers, or does it send from another address than the one listed there?",
	DropVXLANTruncated:   "the datagram is too short for VXLAN and Ethernet: what else sends to the tunnel's port?",
	DropVXLANFlags:       "its VXLAN header lacks the I flag or has a reserved bit set: the sender uses an extension (GBP, GPE) or is no VXLAN at all",
	DropVNI:              "its VNI is that of another VXLAN network: compare Backend.VNI in the net-conf.json of both nodes",
	DropOtherMAC:         "its inner destination MAC is not this node's VTEP: does the sender list another vtepMAC for this node than its tulle status shows, in a peers file or a forwarding database, or an old one?",
	DropOwnMAC:           "its inner source MAC is this node's own VTEP: it came back in a loop, or another node has the same VTEP MAC",
	DropInnerSource:      "its inner source does not belong to the node that it came from: is another node using this subnet, is a peer missing or listed with another subnet in this node's tulle peers, or does a pod use a foreign address?",
	DropECN:              "the underlay marked congestion on a packet whose flow cannot carry the mark, which makes it a loss (RFC 6040): the underlay is congested",
	DropInnerDestination: "its inner destination is not on this node: does the sender list this node's subnet otherwise than its tulle status shows?",
	DropNested:           "it is a packet of the tunnel inside the tunnel, to this node itself: is the route to a node's public address inside the cluster network?",

	DropUnrelated:     "it is an ICMP error about a flow that this node does not know, or a redirect: it is late or forged",
	DropFlowQuota:     "it begins a new flow, and its source has as many as --max-flows-per-source allows: see tulle flows --sum src for how many",
	DropFlowTableFull: "it begins a new flow, and the flow table is full of established ones: see tulle flows --sum src for who opens so many",

	DropNoRoute:      "no route of this node's covers its destination: compare it with tulle routes",
	DropReject:       "its destination lies in the cluster network, but no known node owns it: is a peer missing in tulle peers, or is the pod gone?",
	DropEngine:       "it is for the engine's own address, which takes nothing but echo requests and replies",
	DropTTL:          "its TTL or hop limit is used up: there is a routing loop, or the sender starts with too few hops (traceroute does on purpose)",
	DropTooBig:       "it is larger than the path to the peer and may not be fragmented; the sender was told by ICMP how large it may be: compare the pod's MTU with the path's in tulle peers -o json",
	DropPodWrite:     "the pod's port refused it: was the pod's interface removed or set down?",
	DropTAPWrite:     "the TAP refused it: was the device removed or set down, or is this node's kernel out of memory?",
	DropNextHop:      "the raw underlay does not know the Ethernet address that leads to the peer: does it answer ARP or ND (ip neighbour), and is it behind the link of --iface?",
	DropUnderlaySend: "the underlay socket refused the datagram: is there a route to the peer's public address, and do firewall and neighbour table of this node let it out?",
}

// Cause returns a sentence without its full stop: what happened to a packet with this verdict, and what to look at.
func (v Verdict) Cause() string {
	if v < NumVerdicts {
		return causes[v]
	}
	return "this program has no such verdict"
}
