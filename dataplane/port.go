// Package dataplane owns the way of a packet: the Engine with its workers, the Port
// that frames come in and go out by, the answers that the engine makes itself, and the counters.
//
// A worker owns its TAP queue, its underlays, its buffers and its counters and runs each
// batch to completion: no lock, no channel and no allocation per packet. What it
// looks up comes from one tables.Set, loaded once per batch, and from the flow table, whose
// lookups take no lock. The clock is read once per batch. The package never logs on the
// packet path and knows nothing of the control plane.
package dataplane

import "github.com/tulle-net/tulle/dataplane/packet"

// A Port is where frames come in and go out: a TAP queue, an underlay, or an in-memory
// port in tests. A Port is used by one goroutine, its worker.
type Port interface {
	// Read appends to the batch the frames that are there now and returns their number.
	// It never blocks: 0 means empty. An error means that the port is gone.
	Read(*packet.Batch) (int, error)
	// Write takes every frame of the batch and sets Sent, Refused and SentBytes of each. An
	// error means that the port is gone; refusals of single frames are no error.
	Write(*packet.Batch) error
	// FD is readable (poll(2)) when Read has something to return.
	FD() int
	Close() error
}

// A Codec puts the encapsulation on and takes it off. It is shared by all workers and
// safe for concurrent use.
type Codec interface {
	// Overhead is what the encapsulation adds to an inner IP packet, the outer IP header included, in bytes.
	Overhead(outerIPv6 bool) int
	// InnerAt is where the inner IP header is behind the outer UDP header, bytes.
	InnerAt() int
	// Encap prepends the header to a frame that Parse accepted.
	Encap(*packet.Frame) packet.Verdict
	// Decap strips the header, so that the frame starts with an Ethernet header, or with the IP header of a packet
	// that has none (packet.Frame.Detached).
	Decap(*packet.Frame) packet.Verdict
}

// A Side is one of a worker's ports.
type Side uint8

// The sides, also indices into Counters.Ports.
const (
	TAP       Side = iota
	Underlay       // over IPv4
	Underlay6      // over IPv6
	numSides
	// Pod is all ports of pods, of which a worker has any number. They have one index in Counters.Ports.
	Pod         = numSides
	numCounters = numSides + 1
)

// String returns the side's name in counters and status.
func (s Side) String() string {
	switch s {
	case TAP:
		return "tap"
	case Underlay:
		return "underlay"
	case Pod:
		return "pods"
	}
	return "underlay6"
}

// Inner says whether frames of the side are the node's or its pods' own, and not encapsulated.
func (s Side) Inner() bool { return s == TAP || s == Pod }

// sent is the verdict of a packet that the side's port took.
func (s Side) sent() packet.Verdict {
	if s.Inner() {
		return packet.Delivered
	}
	return packet.Encapsulated
}

// refused is the verdict of segments that the side's port did not take.
func (s Side) refused(f *packet.Frame) packet.Verdict {
	switch {
	case f.RefusedAs != packet.None:
		return f.RefusedAs
	case s == TAP:
		return packet.DropTAPWrite
	case s == Pod:
		return packet.DropPodWrite
	}
	return packet.DropUnderlaySend
}
