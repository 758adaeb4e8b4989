package packet

// A Verdict is what became of a packet. Every packet gets exactly one, and every
// verdict has one counter, in wire segments. Counters, metrics, flows, trace and
// capture comments all use this enum.
type Verdict uint8

// None is the zero Verdict: nothing decided yet, go on to the next stage.
const None Verdict = 0

// Verdicts, in the order of a packet's way.
const (
	// The packet left, or was used up.
	Encapsulated  Verdict = iota + 1 // sent to a peer on the underlay
	Delivered                        // written to the TAP or to a pod's port
	ARPAnswered                      // a request that the engine answered
	NDAnswered                       // a neighbour solicitation that the engine answered
	EchoAnswered                     // an echo request to the engine's own address
	ProbeAnswered                    // the answer to a probe of this node's

	// Reading and parsing.
	DropNoTables       // no tables.Set published yet: fail closed
	DropReadTruncated  // longer than the read buffer, or a short vnet_hdr
	DropFrameTruncated // ends inside a header or before the length it claims
	DropEtherType      // neither IP nor ARP
	DropARP            // an ARP that is not a request which the engine answers
	DropND             // a neighbour discovery message that is not a solicitation which the engine answers
	DropIPHeader       // version, header length or total length impossible
	DropIPChecksum     // wrong IPv4 header checksum
	DropExtension      // IPv6 extension headers malformed, forbidden or too many
	DropL4Checksum     // wrong TCP, UDP or ICMP checksum
	DropFragmentTiny   // a first fragment without its whole L4 header, or one that could overwrite it (RFC 1858, RFC 7112)
	DropOffload        // vnet_hdr or super-packet metadata contradicts the headers
	DropMulticast      // multicast or broadcast destination: the network is routed
	DropMartian        // a source or destination that is never forwarded: loopback, link-local, unspecified, multicast source

	// What a pod sends by a port of its own, beside these.
	DropPodMAC    // its source is not the pod's MAC
	DropPodSource // its IP source is not the pod's
	DropPodARP    // ARP whose sender is not the pod
	DropPodND     // a router advertisement, a redirect, or an advertisement for somebody else's address
	DropPodDHCP   // from a DHCP server's port

	// Fragments.
	DropFragmentOverlap // overlaps another fragment of its datagram, or repeats one (RFC 5722)
	DropFragmentOrphan  // its first fragment did not come in time
	DropFragmentMemory  // came before its first fragment, and there is no room to wait

	// Decapsulation.
	DropUnknownPeer      // outer source is no known node
	DropVXLANTruncated   // datagram too short for VXLAN and Ethernet
	DropVXLANFlags       // I flag missing or a reserved bit set
	DropVNI              // another VXLAN network
	DropOtherMAC         // inner destination MAC is not this node's VTEP
	DropOwnMAC           // inner source MAC is this node's VTEP
	DropInnerSource      // inner source does not belong to the sending node
	DropECN              // congestion mark on a flow that cannot carry it (RFC 6040 section 4.2)
	DropInnerDestination // inner destination is not on this node
	DropNested           // a tunnel packet inside the tunnel, to the node itself

	// Flows.
	DropUnrelated     // an ICMP error that quotes no known flow, or a redirect
	DropFlowTableFull // a new flow, and the table holds as many as it may
	DropFlowQuota     // a new flow, and its source has as many as it may

	// Routing and sending.
	DropNoRoute      // no FIB entry
	DropReject       // a reject route: cluster network that no node owns
	DropEngine       // to the engine's own address, which takes only echo requests and replies
	DropTTL          // TTL or hop limit used up
	DropTooBig       // larger than the path to the peer, and may not be fragmented
	DropTAPWrite     // the TAP refused the frame
	DropPodWrite     // the pod's port refused the frame
	DropNextHop      // the underlay does not know which neighbour leads to the peer
	DropUnderlaySend // the underlay socket refused the datagram

	NumVerdicts = iota + 1 // number of verdicts, None included
)

var verdictNames = [NumVerdicts]string{
	None:                 "none",
	Encapsulated:         "encapsulated",
	Delivered:            "delivered",
	ARPAnswered:          "arp_answered",
	NDAnswered:           "nd_answered",
	EchoAnswered:         "echo_answered",
	ProbeAnswered:        "probe_answered",
	DropNoTables:         "drop_no_tables",
	DropReadTruncated:    "drop_read_truncated",
	DropFrameTruncated:   "drop_frame_truncated",
	DropEtherType:        "drop_ethertype",
	DropARP:              "drop_arp",
	DropND:               "drop_nd",
	DropIPHeader:         "drop_ip_header",
	DropIPChecksum:       "drop_ip_checksum",
	DropExtension:        "drop_extension",
	DropL4Checksum:       "drop_transport_checksum",
	DropFragmentTiny:     "drop_fragment_tiny",
	DropOffload:          "drop_offload",
	DropMulticast:        "drop_multicast",
	DropMartian:          "drop_martian",
	DropPodMAC:           "drop_pod_mac",
	DropPodSource:        "drop_pod_source",
	DropPodARP:           "drop_pod_arp",
	DropPodND:            "drop_pod_nd",
	DropPodDHCP:          "drop_pod_dhcp",
	DropFragmentOverlap:  "drop_fragment_overlap",
	DropFragmentOrphan:   "drop_fragment_orphan",
	DropFragmentMemory:   "drop_fragment_memory",
	DropUnknownPeer:      "drop_unknown_peer",
	DropVXLANTruncated:   "drop_vxlan_truncated",
	DropVXLANFlags:       "drop_vxlan_flags",
	DropVNI:              "drop_vni",
	DropOtherMAC:         "drop_other_mac",
	DropOwnMAC:           "drop_own_mac",
	DropInnerSource:      "drop_inner_source",
	DropECN:              "drop_ecn",
	DropInnerDestination: "drop_inner_destination",
	DropNested:           "drop_nested",
	DropUnrelated:        "drop_unrelated",
	DropFlowTableFull:    "drop_flow_table_full",
	DropFlowQuota:        "drop_flow_quota",
	DropNoRoute:          "drop_no_route",
	DropReject:           "drop_reject",
	DropEngine:           "drop_engine",
	DropTTL:              "drop_ttl",
	DropTooBig:           "drop_too_big",
	DropTAPWrite:         "drop_tap_write",
	DropPodWrite:         "drop_pod_write",
	DropNextHop:          "drop_next_hop",
	DropUnderlaySend:     "drop_underlay_send",
}

// String returns the verdict's name in counters and metrics.
func (v Verdict) String() string {
	if v < NumVerdicts {
		return verdictNames[v]
	}
	return "invalid"
}

// Sent reports whether the packet left through a port.
func (v Verdict) Sent() bool { return v == Encapsulated || v == Delivered }

// Consumed reports whether the engine used the packet up on purpose.
func (v Verdict) Consumed() bool { return v >= ARPAnswered && v <= ProbeAnswered }

// Dropped reports whether the packet was thrown away.
func (v Verdict) Dropped() bool { return v >= DropNoTables && v < NumVerdicts }
