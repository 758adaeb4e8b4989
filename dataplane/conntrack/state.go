package conntrack

import "fmt"

// A State is how far a flow is. TCP's are those of Linux's conntrack; of other protocols it is only known whether
// both ends were heard.
type State uint8

const (
	free State = iota // a slot without a flow
	// SynSent is a connection of which only the originator's SYN was seen.
	SynSent
	// SynRecv is one whose SYN was answered.
	SynRecv
	// Established is one past the handshake, or picked up in its middle.
	Established
	// FinWait is one of which one end sent a FIN.
	FinWait
	// CloseWait is one whose FIN was acknowledged.
	CloseWait
	// LastAck is one of which both ends sent a FIN.
	LastAck
	// TimeWait is one whose last FIN was acknowledged.
	TimeWait
	// Close is one that was reset.
	Close
	// SynSent2 is a simultaneous open: SYNs from both ends.
	SynSent2
	// Unreplied is a flow without TCP of which only the originator was heard.
	Unreplied
	// Replied is a flow without TCP of which both ends were heard.
	Replied
	states
)

var stateNames = [states]string{"free", "syn-sent", "syn-recv", "established", "fin-wait", "close-wait", "last-ack",
	"time-wait", "close", "syn-sent2", "unreplied", "replied"}

// String returns the state's name in listings.
func (s State) String() string {
	if s < states {
		return stateNames[s]
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// MarshalText makes JSON carry the name.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// timeouts are how long a flow lives after its last packet, seconds. Linux's defaults but for three: established TCP
// as RFC 5382 REQ-5 has it (Linux: 5 days), a replied UDP flow counts as a stream at once (RFC 4787 REQ-5), ICMP queries
// get the 60 s of RFC 5508 REQ-2 (Linux: 30 s).
var timeouts = [states]uint32{
	SynSent:     120,
	SynRecv:     60,
	Established: 2*3600 + 4*60,
	FinWait:     120,
	CloseWait:   60,
	LastAck:     30,
	TimeWait:    120,
	Close:       10,
	SynSent2:    120,
	Unreplied:   30,  // UDP
	Replied:     120, // UDP
}

const (
	shortestTimeout = 10 // Close

	timeoutPickup  = 300 // TCP picked up in the middle, until the other end is heard (Linux: unacknowledged)
	timeoutICMP    = 60
	timeoutGeneric = 600 // protocols without ports that we read
)

// timeout returns how long a flow lives without packets, seconds.
func timeout(proto uint8, s State, replied bool) uint32 {
	switch {
	case proto == protoTCP && s == Established && !replied:
		return timeoutPickup
	case proto == protoTCP || proto == protoUDP:
		return timeouts[s]
	case proto == protoICMP || proto == protoICMPv6:
		return timeoutICMP
	}
	return timeoutGeneric
}

// assured flows are never evicted: those past their opening and before their end, heard from both ends.
func assured(s State, replied bool) bool {
	return s == Replied || s == Established && replied
}
