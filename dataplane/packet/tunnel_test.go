package packet

import "testing"

// A device that cuts must know that CWR is the first segment's alone (include/uapi/linux/virtio_net.h).
func TestTunnelVNetECN(t *testing.T) {
	for _, flags := range []uint8{0x10, 0x90} {
		f := &Frame{buf: make([]byte, 100), L3: 14, L4: 34, Payload: 54, Proto: ProtoTCP, VNet: VNet{GSOType: GSOTCPv4, GSOSize: 10}}
		f.buf[f.L4+13] = flags
		var b [TunnelVNetLen]byte
		f.PutTunnelVNet(b[:], 34, 42, true)
		if got, want := b[1], GSOTCPv4|gsoTunnelIPv6|flags&tcpCWR; got != want {
			t.Errorf("TCP flags %#x: GSO type %#x, want %#x", flags, got, want)
		}
	}
}
