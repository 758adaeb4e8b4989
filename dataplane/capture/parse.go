package capture

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// Supported is the part of pcap-filter(7) that filters may use.
const Supported = `ip, ip6, arp, tcp, udp, icmp, icmp6; [ip|ip6|arp] [src|dst] host ADDR; [ip|ip6|arp] [src|dst] net PREFIX; ` +
	`[tcp|udp] [src|dst] port N; [tcp|udp] [src|dst] portrange N-M; ether [src|dst] host MAC; [ip|ip6] proto N; less N; greater N; and, or, not, ( )`

// Limits of a filter's text: its bytes, and how deep it nests.
const (
	maxFilter  = 4096
	maxNesting = 64
)

// ParseFilter compiles a filter. As in libpcap, and and or have the same precedence and join from the left, not binds closest, and a value
// without qualifiers has those of the value before it: "port 80 or 443". Unlike it, IPv6 extension headers and VLAN tags are
// looked behind. What is not Supported is refused. An empty text is no filter: nil.
func ParseFilter(text string) (*Filter, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	if len(text) > maxFilter {
		return nil, fmt.Errorf("a filter of %d bytes (allowed: %d)", len(text), maxFilter)
	}
	p := parser{tokens: tokens(text), last: qualifiers{kind: "host"}}
	root := p.expression()
	if p.err == nil && p.peek() != "" {
		p.fail("and, or, or the end is expected in front of it")
	}
	if p.err != nil {
		return nil, p.err
	}
	return &Filter{root}, nil
}

// tokens cuts the text into words and single signs.
func tokens(text string) []string {
	var all []string
	for len(text) > 0 {
		n := strings.IndexFunc(text, func(r rune) bool { return !isWord(r) })
		switch {
		case n < 0:
			n = len(text)
		case n == 0 && (strings.HasPrefix(text, "&&") || strings.HasPrefix(text, "||")):
			n = 2
		case n == 0:
			_, n = utf8.DecodeRuneInString(text) // also what is no rune is one sign
		}
		if word := strings.TrimSpace(text[:n]); word != "" {
			all = append(all, word)
		}
		text = text[n:]
	}
	return all
}

func isWord(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(`.:/-_\`, r)
}

// qualifiers stand in front of a value.
type qualifiers struct {
	proto string // ip, tcp, ether, ...; "" for none
	dir   ends
	kind  string // host, net, port, portrange, proto; "" when only a direction was given, which means host
}

type parser struct {
	tokens  []string
	at      int
	nesting int
	last    qualifiers // of the last value
	err     error      // the first one
}

// peek returns the token at hand, "" at the end.
func (p *parser) peek() string { return p.ahead(0) }

func (p *parser) ahead(n int) string {
	if p.at+n >= len(p.tokens) {
		return ""
	}
	return p.tokens[p.at+n]
}

func (p *parser) next() string {
	t := p.peek()
	p.at++
	return t
}

// accept takes the token at hand if it is one of these.
func (p *parser) accept(words ...string) bool {
	for _, w := range words {
		if p.peek() == w {
			p.at++
			return true
		}
	}
	return false
}

// fail notes what is wrong with the token at hand.
func (p *parser) fail(format string, args ...any) {
	if p.err != nil {
		return
	}
	token := "at the end"
	if t := p.peek(); t != "" {
		token = strconv.Quote(t)
	}
	p.err = fmt.Errorf("%s: %s (supported: %s)", token, fmt.Sprintf(format, args...), Supported)
}

// expression reads terms joined from the left.
func (p *parser) expression() *node {
	left := p.term()
	for p.err == nil {
		switch {
		case p.accept("and", "&&"):
			left = &node{test: testAnd, left: left, right: p.term()}
		case p.accept("or", "||"):
			left = &node{test: testOr, left: left, right: p.term()}
		default:
			return left
		}
	}
	return left
}

func (p *parser) term() *node {
	if p.nesting++; p.nesting > maxNesting {
		p.fail("nested deeper than %d", maxNesting)
		return nil
	}
	defer func() { p.nesting-- }()
	switch {
	case p.accept("not", "!"):
		return &node{test: testNot, left: p.term()}
	case p.accept("("):
		n := p.expression()
		if !p.accept(")") {
			p.fail("a ) is missing")
		}
		return n
	}
	return p.primitive()
}

// named are the tests that need no value.
var named = map[string]node{
	"ip":    {test: testEtherType, etherType: packet.EtherTypeIPv4},
	"ip6":   {test: testEtherType, etherType: packet.EtherTypeIPv6},
	"arp":   {test: testEtherType, etherType: packet.EtherTypeARP},
	"tcp":   {test: testProto, proto: packet.ProtoTCP},
	"udp":   {test: testProto, proto: packet.ProtoUDP},
	"icmp":  {test: testProto, proto: packet.ProtoICMP, etherType: packet.EtherTypeIPv4},
	"icmp6": {test: testProto, proto: packet.ProtoICMPv6, etherType: packet.EtherTypeIPv6},
}

func (p *parser) primitive() *node {
	q, given := p.qualifiers()
	if p.err != nil {
		return nil
	}
	if given && q.kind == "" && q.dir == either { // a protocol alone
		n, ok := named[q.proto]
		if !ok {
			p.fail("host is expected behind %s", q.proto)
			return nil
		}
		return &n
	}
	if t := p.peek(); !given && (t == "less" || t == "greater") {
		return p.size()
	}
	if !given {
		q = p.last
	} else if q.kind == "" {
		q.kind = "host"
	}
	n := p.value(q)
	p.last = q
	return n
}

// qualifiers reads [protocol] [direction] [kind]; given says that there was any.
func (p *parser) qualifiers() (q qualifiers, given bool) {
	start := p.at
	if _, ok := named[p.peek()]; ok || p.peek() == "ether" {
		q.proto = p.next()
	}
	q.dir = p.direction()
	switch p.peek() {
	case "host", "net", "port", "portrange", "proto":
		q.kind = p.next()
	}
	return q, p.at > start
}

// direction reads src, dst, src or dst, src and dst.
func (p *parser) direction() ends {
	first := p.peek()
	if !p.accept("src", "dst") {
		return either
	}
	second := p.ahead(1)
	if (second == "src" || second == "dst") && second != first {
		switch p.peek() {
		case "or", "||":
			p.at += 2
			return either
		case "and", "&&":
			p.at += 2
			return both
		}
	}
	if first == "src" {
		return source
	}
	return destination
}

func (p *parser) size() *node {
	n := node{test: testLess}
	if p.next() == "greater" {
		n.test = testGreater
	}
	number, err := strconv.ParseUint(p.peek(), 10, 31)
	if err != nil {
		p.fail("a number of bytes is expected")
		return nil
	}
	p.at++
	n.number = int(number)
	return &n
}

// value reads a value with qualifiers.
func (p *parser) value(q qualifiers) *node {
	n := node{dir: q.dir}
	switch q.kind {
	case "host":
		p.host(q, &n)
	case "net":
		p.net(q, &n)
	case "proto":
		p.proto(q, &n)
	default:
		p.port(q, &n)
	}
	if p.err != nil {
		return nil
	}
	p.at++
	return &n
}

// family restricts a node to the protocol that its qualifiers name.
func (p *parser) family(q qualifiers, n *node) {
	switch q.proto {
	case "", "ip", "ip6", "arp":
		n.etherType = named[q.proto].etherType
	default:
		p.fail("%s cannot stand in front of %s", q.proto, q.kind)
	}
}

func (p *parser) host(q qualifiers, n *node) {
	if q.proto == "ether" {
		mac, err := net.ParseMAC(p.peek())
		if err != nil || len(mac) != len(n.mac) {
			p.fail("a MAC address is expected")
			return
		}
		n.test, n.mac = testMAC, packet.MAC(mac)
		return
	}
	p.family(q, n)
	a, err := netip.ParseAddr(p.peek())
	if err != nil {
		p.fail("no such word, and no IP address (names are not looked up)")
		return
	}
	n.test, n.prefix = testNet, netip.PrefixFrom(a, a.BitLen())
}

func (p *parser) net(q qualifiers, n *node) {
	p.family(q, n)
	prefix, err := parseNet(p.peek())
	if err != nil {
		p.fail("%v", err)
		return
	}
	n.test, n.prefix = testNet, prefix
}

// parseNet reads a prefix. As in libpcap the last bytes of an IPv4 one may be left out: 192.168 is 192.168.0.0/16.
func parseNet(s string) (netip.Prefix, error) {
	base, bits, slash := strings.Cut(s, "/")
	full := base
	if given := strings.Count(base, ".") + 1; !strings.Contains(base, ":") && given < 4 {
		full += strings.Repeat(".0", 4-given)
		if !slash {
			bits = strconv.Itoa(8 * given)
		}
	}
	a, err := netip.ParseAddr(full)
	if err == nil && bits == "" && !slash {
		bits = strconv.Itoa(a.BitLen())
	}
	length, bitsErr := strconv.Atoi(bits)
	prefix := netip.PrefixFrom(a, length)
	if err != nil || bitsErr != nil || !prefix.IsValid() {
		return prefix, fmt.Errorf("a prefix such as 10.244.0.0/16 is expected")
	}
	if masked := prefix.Masked(); masked != prefix {
		return prefix, fmt.Errorf("it has host bits: write %s", masked)
	}
	return prefix, nil
}

func (p *parser) proto(q qualifiers, n *node) {
	if q.proto == "arp" || q.dir != either {
		p.fail("only ip or ip6 can stand in front of proto")
		return
	}
	p.family(q, n)
	word := strings.TrimPrefix(p.peek(), `\`)
	number, err := strconv.ParseUint(word, 10, 8)
	if known, ok := named[word]; ok && known.test == testProto {
		number, err = uint64(known.proto), nil
	}
	if err != nil {
		p.fail("a protocol's number, or tcp, udp, icmp or icmp6 is expected")
		return
	}
	n.test, n.proto = testProto, uint8(number)
}

func (p *parser) port(q qualifiers, n *node) {
	switch q.proto {
	case "", "tcp", "udp":
		n.proto = named[q.proto].proto
	default:
		p.fail("%s cannot stand in front of %s", q.proto, q.kind)
		return
	}
	first, last, ranged := strings.Cut(p.peek(), "-")
	if !ranged {
		last = first
	}
	from, err1 := strconv.ParseUint(first, 10, 16)
	to, err2 := strconv.ParseUint(last, 10, 16)
	if err1 != nil || err2 != nil || from > to || ranged != (q.kind == "portrange") {
		p.fail("%s is expected", map[bool]string{false: "a port's number", true: "a range such as 8000-8080"}[q.kind == "portrange"])
		return
	}
	n.test, n.from, n.to = testPort, uint16(from), uint16(to)
}
