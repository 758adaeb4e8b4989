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
	Encapsulated Verdict = iota + 1 // sent to a peer on the underlay
	Delivered                       // written to the TAP
	ARPAnswered                     // a request that the engine answered

	// Reading and parsing.
	DropNoTables       // no tables.Set published yet: fail closed
	DropReadTruncated  // longer than the read buffer, or a short vnet_hdr
	DropFrameTruncated // ends inside a header or before the length it claims
	DropEtherType      // neither IPv4 nor ARP
	DropARP            // an ARP that is not a request which the engine answers
	DropIPHeader       // version, header length or total length impossible
	DropIPChecksum     // wrong IPv4 header checksum
	DropOffload        // vnet_hdr or super-packet metadata contradicts the headers
	DropMulticast      // multicast or broadcast destination: the network is routed

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

	// Routing and sending.
	DropNoRoute      // no FIB entry
	DropReject       // a reject route: cluster network that no node owns
	DropTAPWrite     // the TAP refused the frame
	DropUnderlaySend // the underlay socket refused the datagram

	NumVerdicts = iota + 1 // number of verdicts, None included
)

var verdictNames = [NumVerdicts]string{
	None:                 "none",
	Encapsulated:         "encapsulated",
	Delivered:            "delivered",
	ARPAnswered:          "arp_answered",
	DropNoTables:         "drop_no_tables",
	DropReadTruncated:    "drop_read_truncated",
	DropFrameTruncated:   "drop_frame_truncated",
	DropEtherType:        "drop_ethertype",
	DropARP:              "drop_arp",
	DropIPHeader:         "drop_ip_header",
	DropIPChecksum:       "drop_ip_checksum",
	DropOffload:          "drop_offload",
	DropMulticast:        "drop_multicast",
	DropUnknownPeer:      "drop_unknown_peer",
	DropVXLANTruncated:   "drop_vxlan_truncated",
	DropVXLANFlags:       "drop_vxlan_flags",
	DropVNI:              "drop_vni",
	DropOtherMAC:         "drop_other_mac",
	DropOwnMAC:           "drop_own_mac",
	DropInnerSource:      "drop_inner_source",
	DropECN:              "drop_ecn",
	DropInnerDestination: "drop_inner_destination",
	DropNoRoute:          "drop_no_route",
	DropReject:           "drop_reject",
	DropTAPWrite:         "drop_tap_write",
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
func (v Verdict) Consumed() bool { return v == ARPAnswered }

// Dropped reports whether the packet was thrown away.
func (v Verdict) Dropped() bool { return v >= DropNoTables && v < NumVerdicts }
