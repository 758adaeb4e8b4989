// Package capture owns what tulle capture needs beside the command: the session that copies packets off the workers into bounded
// rings, the socket that reads the underlay itself, the stream in which both reach the command, the filters, and the pcapng
// blocks.
//
// A Session is a dataplane.Observer: it runs on the packet path, so it neither allocates nor waits, and what finds no room is
// counted as missed. Nothing here opens a file, and nothing decides about a packet.
//
// Sources: pcapng as in draft-ietf-opsawg-pcapng; filters as in pcap-filter(7), of which Supported says the part; packet(7) with
// PACKET_RX_RING of TPACKET_V3 for the wire.
package capture

// A LinkType says what a captured packet begins with, as in https://www.tcpdump.org/linktypes.html.
type LinkType uint16

// Link types that are written.
const (
	Ethernet LinkType = 1
	RawIP    LinkType = 101 // an IPv4 or IPv6 header
)

// A Stage is a place at which packets are captured.
type Stage uint8

// Stages, in the order of the way out.
const (
	TAP   Stage = iota // as read from the TAP and as written to it
	Encap              // encapsulated, as handed to the socket
	Decap              // decapsulated, and fit to come from its peer
	Drop               // as it was when it was dropped
	Wire               // as it is on the underlay's link
	numStages
)

var stageNames = [numStages]string{TAP: "tap", Encap: "encap", Decap: "decap", Drop: "drop", Wire: "wire"}

// String returns the stage's name on the command line.
func (s Stage) String() string {
	if s < numStages {
		return stageNames[s]
	}
	return "invalid"
}

// ParseStage finds a stage by its name.
func ParseStage(name string) (Stage, bool) {
	for s, have := range stageNames {
		if have == name {
			return Stage(s), true
		}
	}
	return 0, false
}
