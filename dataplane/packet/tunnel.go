package packet

import "encoding/binary"

// TunnelVNetLen is the length of a virtio_net_hdr for super-packets inside a UDP tunnel: struct virtio_net_hdr_v1_hash_tunnel
// (include/uapi/linux/virtio_net.h, Linux 6.17).
const TunnelVNetLen = 24

// Of virtio_net_hdr (include/uapi/linux/virtio_net.h).
const (
	gsoTunnelIPv4 = 0x20
	gsoTunnelIPv6 = 0x40

	vnetTunnelCsum = 8 // the outer UDP header has a checksum too, of which the field holds the pseudo-header sum
)

// PutTunnelVNet writes the virtio_net_hdr for a super-packet that stands behind outer headers, Ethernet's first, of so many bytes
// with their UDP header at outerL4. Valid iff Parse returned None and VNet.NeedsCsum.
func (f *Frame) PutTunnelVNet(b []byte, outerL4, outerLen int, outerIPv6 bool) {
	tunnel := uint8(gsoTunnelIPv4)
	if outerIPv6 {
		tunnel = gsoTunnelIPv6
	}
	if f.Proto == ProtoTCP && f.buf[f.L4+13]&tcpCWR != 0 {
		tunnel |= gsoECN // CWR is the first segment's
	}
	inner := outerLen - f.start // from an offset of the frame to one from the outer Ethernet header
	VNet{
		Flags: VNetNeedsCsum | vnetTunnelCsum, GSOType: f.VNet.GSOType | tunnel, GSOSize: f.VNet.GSOSize,
		HdrLen: uint16(inner + f.Payload), CsumStart: uint16(inner + f.L4), CsumOffset: f.VNet.CsumOffset,
	}.Encode(b)
	clear(b[VNetLen : TunnelVNetLen-4]) // the number of buffers and the hash, which a TAP does not read
	binary.LittleEndian.PutUint16(b[TunnelVNetLen-4:], uint16(outerL4))
	binary.LittleEndian.PutUint16(b[TunnelVNetLen-2:], uint16(inner+f.L3))
}
