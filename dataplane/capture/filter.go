package capture

import (
	"net/netip"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// A Filter selects packets by their headers. It is immutable and safe for concurrent use. Match does not allocate.
type Filter struct{ root *node }

// Match reports whether the filter lets a packet through. A nil Filter lets all through.
func (f *Filter) Match(h *Headers) bool { return f == nil || f.root.match(h) }

// A test is what a node of a filter asks.
type test uint8

const (
	testAnd test = iota + 1
	testOr
	testNot
	testEtherType // number
	testProto     // number; etherType says of which family, 0 for both
	testNet       // prefix
	testPort      // from..to; proto says of which protocol, 0 for both
	testMAC
	testLess    // at most number bytes
	testGreater // at least number bytes
)

// An ends says which end of a packet a node looks at.
type ends uint8

const (
	either ends = iota
	source
	destination
	both
)

func (d ends) of(src, dst bool) bool {
	switch d {
	case source:
		return src
	case destination:
		return dst
	case both:
		return src && dst
	}
	return src || dst
}

// A node is one test, or joins others. Which fields are valid depends on the test.
type node struct {
	test        test
	left, right *node
	dir         ends
	etherType   uint16
	proto       uint8
	number      int
	prefix      netip.Prefix
	from, to    uint16
	mac         packet.MAC
}

func (n *node) match(h *Headers) bool {
	switch n.test {
	case testAnd:
		return n.left.match(h) && n.right.match(h)
	case testOr:
		return n.left.match(h) || n.right.match(h)
	case testNot:
		return !n.left.match(h)
	case testEtherType:
		return h.EtherType == n.etherType
	case testProto:
		return h.IP && h.Proto == n.proto && (n.etherType == 0 || h.EtherType == n.etherType)
	case testNet:
		return (n.etherType == 0 || h.EtherType == n.etherType) && n.dir.of(n.prefix.Contains(h.Src), n.prefix.Contains(h.Dst))
	case testPort:
		return h.HasPorts && (n.proto == 0 || h.Proto == n.proto) && n.dir.of(n.inRange(h.SrcPort), n.inRange(h.DstPort))
	case testMAC:
		return h.Link && n.dir.of(h.SrcMAC == n.mac, h.DstMAC == n.mac)
	case testLess:
		return h.Length <= n.number
	}
	return h.Length >= n.number // testGreater
}

func (n *node) inRange(port uint16) bool { return port >= n.from && port <= n.to }
