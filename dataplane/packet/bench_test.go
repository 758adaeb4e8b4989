package packet_test

import (
	"testing"
	"unsafe"

	"github.com/tulle-net/tulle/dataplane/packet"
)

func BenchmarkParse(b *testing.B) {
	for name, data := range map[string][]byte{
		"IPv4/TCP": plainTCP(make([]byte, 10)).bytes(b),
		"IPv4/UDP": plainUDP(make([]byte, 10)).bytes(b),
		"IPv6/TCP": plainTCP(make([]byte, 10)).overIPv6().bytes(b),
		"IPv6/UDP": plainUDP(make([]byte, 10)).overIPv6().bytes(b),
		"IPv6/ext": plainUDP(make([]byte, 10)).overIPv6(option(0, 1), option(60, 1)).bytes(b),
	} {
		b.Run(name, func(b *testing.B) {
			f := load(packet.NewBatch(0), data)
			for b.Loop() {
				if v := f.Parse(); v != packet.None {
					b.Fatal(v)
				}
			}
			b.ReportMetric(float64(unsafe.Sizeof(*f)), "frame-bytes")
		})
	}
}
