// Package packet owns bytes: frames and batches of frames, their parsing,
// checksums, segmentation, the answers that the engine makes itself, and the
// Verdict that every packet ends with.
//
// It knows no socket, no clock, no node and no route. Nothing here allocates per
// packet, and nothing panics on what came from a wire.
//
// Formats: Ethernet II (IEEE 802.3), IPv4 (RFC 791), IPv6 (RFC 8200), TCP (RFC 9293), UDP
// (RFC 768), ICMP (RFC 792, RFC 4443), ARP (RFC 826), Neighbour Discovery (RFC 4861),
// checksums (RFC 1071, RFC 1624), ECN tunnelling (RFC 6040),
// virtio_net_hdr (virtio 1.2 section 5.1.6, include/uapi/linux/virtio_net.h).
package packet
