package main

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/tulle-net/tulle/dataplane/capture"
	"github.com/tulle-net/tulle/dataplane/packet"
)

// encapsulated is the beginning of a TCP packet from 10.244.1.2 to 10.244.2.2 in VXLAN, of 2048 bytes.
func encapsulated() []byte {
	b := make([]byte, 2048)
	ip := func(at int, proto byte, src, dst [4]byte) {
		b[at-2], b[at-1] = 0x08, 0x00
		b[at], b[at+8], b[at+9] = 0x45, 64, proto
		b[at+2], b[at+3] = 0xf0, 0
		copy(b[at+12:], append(src[:], dst[:]...))
	}
	ip(14, packet.ProtoUDP, [4]byte{192, 168, 77, 1}, [4]byte{192, 168, 77, 2})
	copy(b[34:], []byte{0xc0, 0, 0x21, 0x18, 0xf0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 1, 0})
	ip(64, packet.ProtoTCP, [4]byte{10, 244, 1, 2}, [4]byte{10, 244, 2, 2})
	copy(b[84:], []byte{0x0f, 0xa0, 0x13, 0x88})
	b[96] = 0x50
	return b
}

// BenchmarkCaptureFile is what the command does for each packet that it writes.
func BenchmarkCaptureFile(b *testing.B) {
	f := newCaptureStream(io.Discard, describer{&captureHello{
		Interfaces: []capture.Interface{{Stage: capture.Wire, Name: "eth0", Link: capture.Ethernet}, {Stage: capture.Encap, Name: "encap", Link: capture.Ethernet}},
		Verdicts:   []string{"none", "encapsulated"}, Tunnel: capture.Tunnel{Port: 8472, VXLAN: true},
	}}, &captureOptions{})
	wire := &capture.Record{Time: time.Unix(1, 0), Length: 60000, Data: encapsulated()}
	encap := *wire
	encap.Interface, encap.Flags, encap.Verdict, encap.Peer = 1, capture.FlagSynthesized|capture.FlagPartial, 1, "n2"
	encap.FlowID, encap.Serial, encap.Segments, encap.Size = 5, 6, 43, 1398
	for name, r := range map[string]*capture.Record{"wire": wire, "encap": &encap} {
		b.Run(name, func(b *testing.B) {
			if c := string(f.appendComment(nil, r)); !strings.Contains(c, "flow tcp 10.244.1.2:4000 > 10.244.2.2:5000") {
				b.Fatal(c)
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := f.packet(r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
