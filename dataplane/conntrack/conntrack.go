package conntrack

import (
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// IP protocol numbers that are tracked in a way of their own.
const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
)

// A Config says how many flows a Table holds for each family. Each IPv4 flow takes 128 bytes, each IPv6 flow 256; the
// least a family takes is 512 slots (32 and 64 KiB). No flows of a family means that none is tracked. The memory is
// reserved at once and used page by page.
type Config struct {
	Flows4, Flows6 int
	// PerSource bounds the flows of each family that packets of one source address began, so that no source takes the room of all; 0 is no
	// bound. It costs 512 KiB for each family.
	PerSource int
}

// maxFlows keeps slot numbers within an ID.
const maxFlows = 1 << 28

// A Tuple names a flow in the direction of one packet. Both addresses are of one family, IPv4 ones of 4 bytes (the
// caller unmaps); zones don't count. Ports are 0 for protocols without, and of an ICMP query both are its identifier.
type Tuple struct {
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16
	Proto            uint8
}

// A Packet is what the table needs to see of a packet, super-packets included: one Packet for all of its segments.
type Packet struct {
	Tuple
	TCP Segment // valid iff Proto is TCP
}

// TCP flags, as in the header (RFC 9293, 3.1).
const (
	FIN uint8 = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
)

// A Segment is a TCP header.
type Segment struct {
	Seq, Ack uint32
	Window   uint16 // as in the header: not scaled
	Flags    uint8
	Len      int    // payload, bytes: up to 64 KiB
	Options  []byte // read iff SYN is set; never kept
}

// NAT is what a flow's packets are translated to in its original direction. A zero AddrPort leaves that
// side alone. Addresses are of the flow's family.
type NAT struct{ Src, Dst netip.AddrPort }

// An ID names a flow for as long as the table exists: the slot and its generation. 0 names none.
type ID uint64

// A Hit is what a packet's flow says about the packet.
type Hit struct {
	ID    ID
	State State // with this packet in it
	Reply bool  // the packet goes against the flow's original direction
	// OutOfWindow says that a TCP packet fits neither the connection's state nor its windows; it left the entry as it
	// was. It may be forwarded where nothing is translated, and must be dropped where NAT is set.
	OutOfWindow bool
	NAT         NAT
}

// A Result is what became of an Insert.
type Result uint8

const (
	// Refused packets start no flow: a tuple or NAT of mixed or no families, or a TCP packet that is neither a SYN nor
	// of the middle of a connection (a RST, a FIN, a SYN|ACK). There is no entry.
	Refused Result = iota
	// Inserted is a new flow.
	Inserted
	// Exists means that the flow was there, inserted by another worker; the Hit is that of a Lookup.
	Exists
	// Full means that there is no room within the packet's reach and nothing to evict. There is no entry.
	Full
	// OverQuota means that the packet's source has as many flows as it may. There is no entry.
	OverQuota
)

// String returns the result's name.
func (r Result) String() string {
	if int(r) < len(resultNames) {
		return resultNames[r]
	}
	return fmt.Sprintf("result(%d)", uint8(r))
}

var resultNames = [...]string{"refused", "inserted", "exists", "full", "over quota"}

// A Flow is a copy of an entry.
type Flow struct {
	ID                         ID
	Tuple                      Tuple // in the original direction
	State                      State
	Replied                    bool // packets were seen in both directions
	NAT                        NAT
	Created, LastSeen, Expires time.Duration // since the caller's epoch, whole seconds; Expires if nothing more is seen
}

// Stats are counts since the table was made or adopted, Flows4 and Flows6 those of now. When nothing happens meanwhile,
// Adopted + Inserted = Flows4 + Flows6 + Expired + Evicted + Deleted.
type Stats struct {
	Flows4, Flows6 int
	Adopted        uint64 // kept of the table that was taken over
	Inserted       uint64
	Expired        uint64 // timed out, or replaced by the SYN of the next connection
	Evicted        uint64 // unreplied or closing, removed to make room
	Deleted        uint64
	Full           uint64 // inserts that found no room
	OverQuota      uint64 // inserts of sources that had as many flows as they may
}

// A Table is the flows of both families. All methods but Close are safe for concurrent use. The zero value is
// not usable: New and Adopt make one.
type Table struct {
	v4, v6  area
	key     hashKey
	mem     []byte
	file    *os.File
	adopted uint64
	_       [64]byte // what every packet reads is apart from what inserts write
	counters
	cursor atomic.Uint64 // of Sweep: the next slot of both families in turn
}

// counters change with flows, never with packets.
type counters struct {
	inserted, expired, evicted, deleted, full, overQuota atomic.Uint64
}

// New returns an empty table.
func New(c Config) (*Table, error) {
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("make flow table: %w", err)
	}
	t := &Table{key: newHashKey()}
	if err := t.create(c); err != nil {
		return nil, fmt.Errorf("make flow table for %d IPv4 and %d IPv6 flows: %w", c.Flows4, c.Flows6, err)
	}
	return t, nil
}

func (c Config) check() error {
	if c.PerSource < 0 || c.PerSource > maxFlows {
		return fmt.Errorf("%d flows of each source: must be 0 to %d", c.PerSource, maxFlows)
	}
	if c.Flows4 < 0 || c.Flows6 < 0 || c.Flows4 > maxFlows || c.Flows6 > maxFlows {
		return fmt.Errorf("%d IPv4 and %d IPv6 flows: each must be 0 to %d", c.Flows4, c.Flows6, maxFlows)
	}
	return nil
}

// File returns the memfd that holds the table, for handing it to another process. It stays the table's: Close
// closes it.
func (t *Table) File() *os.File { return t.file }

// Close unmaps the table. Nothing may use it any more, listings included.
func (t *Table) Close() error {
	if err := unix.Munmap(t.mem); err != nil {
		return fmt.Errorf("unmap flow table: %w", err)
	}
	return t.file.Close()
}

// Stats returns the table's counts.
func (t *Table) Stats() Stats {
	return Stats{
		Flows4: t.v4.flows(), Flows6: t.v6.flows(), Adopted: t.adopted,
		Inserted: t.inserted.Load(), Expired: t.expired.Load(), Evicted: t.evicted.Load(),
		Deleted: t.deleted.Load(), Full: t.full.Load(), OverQuota: t.overQuota.Load(),
	}
}
