// Package encap owns the wire: the encapsulation codecs and the underlay sockets that
// carry them.
//
// It knows no route and no node: where a datagram goes is written on the frame. What leaves is
// plain VXLAN (RFC 7348) as a Linux VXLAN device sends and takes it
// (drivers/net/vxlan/vxlan_core.c): every reserved bit zero, outer checksums real, the source port a
// hash of the inner flow; or bare IPv4 packets, as flannel's udp backend sends and takes them
// (pkg/backend/udp/proxy_amd64.c).
package encap

import (
	"encoding/binary"
	"fmt"

	"github.com/tulle-net/tulle/dataplane/packet"
)

const (
	vxlanLen = 8
	// vxlanFlags is the only first word that is right on the wire: the I flag, nothing else.
	vxlanFlags = 0x08000000

	outerIPv4Len = 20
	outerIPv6Len = 40
	outerUDPLen  = 8

	ipv4MinLen = 20
	ipv6Len    = 40

	// MaxVNI is the largest VXLAN network identifier.
	MaxVNI = 1<<24 - 1
)

// VXLAN is the codec of one VXLAN network. It is immutable and safe for concurrent use.
type VXLAN struct{ header [vxlanLen]byte }

// NewVXLAN returns the codec for a VNI from 0 to MaxVNI.
func NewVXLAN(vni uint32) (*VXLAN, error) {
	if vni > MaxVNI {
		return nil, fmt.Errorf("vxlan: VNI %d (allowed: 0 to %d)", vni, MaxVNI)
	}
	v := &VXLAN{}
	binary.BigEndian.PutUint32(v.header[:], vxlanFlags)
	binary.BigEndian.PutUint32(v.header[4:], vni<<8)
	return v, nil
}

// Overhead returns 50, or 70 with an outer IPv6 header: outer IP, UDP, VXLAN and inner Ethernet.
func (v *VXLAN) Overhead(outerIPv6 bool) int {
	return outerIPLen(outerIPv6) + outerUDPLen + vxlanLen + packet.EthernetLen
}

// InnerAt returns 22: VXLAN and inner Ethernet.
func (v *VXLAN) InnerAt() int { return vxlanLen + packet.EthernetLen }

func outerIPLen(v6 bool) int {
	if v6 {
		return outerIPv6Len
	}
	return outerIPv4Len
}

// Encap prepends the VXLAN header.
func (v *VXLAN) Encap(f *packet.Frame) packet.Verdict {
	header, ok := f.Prepend(vxlanLen)
	if !ok {
		return packet.DropFrameTruncated
	}
	copy(header, v.header[:])
	return packet.None
}

// Decap strips the VXLAN header. Like the kernel it takes no header with a reserved bit
// set: such a bit belongs to an extension that changes what follows.
func (v *VXLAN) Decap(f *packet.Frame) packet.Verdict {
	b := f.Bytes()
	if len(b) < vxlanLen+packet.EthernetLen {
		return packet.DropVXLANTruncated
	}
	if binary.BigEndian.Uint32(b) != vxlanFlags || b[7] != 0 {
		return packet.DropVXLANFlags
	}
	if [3]byte(b[4:7]) != [3]byte(v.header[4:7]) {
		return packet.DropVNI
	}
	f.Strip(vxlanLen)
	return packet.None
}

// DatagramLen returns the length that the inner packet gives the datagram; 0 when it
// carries no IP.
func (v *VXLAN) DatagramLen(b []byte) int {
	const ip = vxlanLen + packet.EthernetLen
	if len(b) < ip+6 { // up to the length field of either version
		return 0
	}
	switch binary.BigEndian.Uint16(b[ip-2:]) {
	case packet.EtherTypeIPv4:
		return ip + int(binary.BigEndian.Uint16(b[ip+2:]))
	case packet.EtherTypeIPv6:
		return ip + ipv6Len + int(binary.BigEndian.Uint16(b[ip+4:]))
	}
	return 0
}
