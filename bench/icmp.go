package bench

import (
	"bytes"
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

const (
	icmpHeader = 8
	// icmpFilter is ICMP_FILTER of linux/icmp.h, at level SOL_RAW.
	icmpFilter = 1
)

// icmp is echo in one family. An IPv4 socket reads packets with their header and ICMP checksum; with an IPv6 socket the kernel
// takes the header off, fills the checksum in, and keeps back what arrives with a wrong one (RFC 3542, section 3.1).
type icmp struct {
	network         string // as package net names it
	echo, echoReply byte
	maxSize         int // of the payload, bytes
}

var (
	icmpv4 = icmp{network: "ip4:icmp", echo: 8, echoReply: 0, maxSize: 65535 - 20 - icmpHeader}
	icmpv6 = icmp{network: "ip6:ipv6-icmp", echo: 128, echoReply: 129, maxSize: 65535 - icmpHeader}
)

// configure lets only replies through to fd, and sets the options of what it sends.
func (i icmp) configure(fd int, opts Ping) error {
	if i == icmpv6 {
		return configure6(fd, opts)
	}
	discover := unix.IP_PMTUDISC_DONT
	if opts.DF {
		discover = unix.IP_PMTUDISC_DO
	}
	err := errors.Join(unix.SetsockoptInt(fd, unix.SOL_RAW, icmpFilter, ^(1<<i.echoReply)),
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, discover))
	if err == nil && opts.TTL > 0 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, opts.TTL)
	}
	return err
}

func configure6(fd int, opts Ping) error {
	var filter unix.ICMPv6Filter // a bit that is set blocks its type
	for w := range filter.Data {
		filter.Data[w] = 1<<32 - 1
	}
	filter.Data[icmpv6.echoReply/32] &^= 1 << (icmpv6.echoReply % 32)
	discover, dontFragment := unix.IPV6_PMTUDISC_DONT, 0
	if opts.DF {
		discover, dontFragment = unix.IPV6_PMTUDISC_DO, 1
	}
	err := errors.Join(unix.SetsockoptICMPv6Filter(fd, unix.SOL_ICMPV6, unix.ICMPV6_FILTER, &filter),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, discover),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, dontFragment))
	if err == nil && opts.TTL > 0 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, opts.TTL)
	}
	return err
}

// split gives the ICMP message of what a socket read, and the TTL or hop limit that it arrived with. Both are zero for what is
// too short to be a packet.
func (i icmp) split(b, oob []byte) (m []byte, ttl int) {
	if i == icmpv6 {
		return b, hopLimit(oob)
	}
	if len(b) < 20 || len(b) < int(b[0]&0xf)*4 {
		return nil, 0
	}
	return b[int(b[0]&0xf)*4:], int(b[8])
}

func hopLimit(oob []byte) int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	for _, m := range messages {
		if m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_HOPLIMIT && len(m.Data) >= 4 {
			return int(binary.NativeEndian.Uint32(m.Data))
		}
	}
	return 0
}

// equal compares messages; the checksum of ICMPv6, which covers the addresses too, has been compared by the kernel.
func (i icmp) equal(a, b []byte) bool {
	if i == icmpv6 && len(a) == len(b) {
		return bytes.Equal(a[:2], b[:2]) && bytes.Equal(a[4:], b[4:])
	}
	return bytes.Equal(a, b)
}
