package packet_test

import (
	"bytes"
	"testing"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// rfc6040 is figure 4 of RFC 6040: inner codepoint by row, outer by column, in the order
// of the figure.
var rfc6040 = map[string][4]string{
	"Not-ECT": {"Not-ECT", "Not-ECT", "Not-ECT", "drop"},
	"ECT(0)":  {"ECT(0)", "ECT(0)", "ECT(1)", "CE"},
	"ECT(1)":  {"ECT(1)", "ECT(1)", "ECT(1)", "CE"},
	"CE":      {"CE", "CE", "CE", "CE"},
}

var (
	rfc6040Columns = [4]string{"Not-ECT", "ECT(0)", "ECT(1)", "CE"}
	codepoints     = map[string]uint8{"Not-ECT": 0, "ECT(1)": 1, "ECT(0)": 2, "CE": 3} // RFC 3168 section 5
)

func TestDecapECN(t *testing.T) {
	b := packet.NewBatch(0)
	for inner, row := range rfc6040 {
		for column, want := range row {
			outer := rfc6040Columns[column]
			for dscp := 0; dscp < 256; dscp += 4 {
				innerTOS := uint8(dscp) | codepoints[inner]
				f := parsed(t, b, tosFrame(t, innerTOS))
				v := f.DecapECN(^uint8(dscp)&^3 | codepoints[outer])
				if want == "drop" {
					if v != packet.DropECN {
						t.Fatalf("inner %s, outer %s: %v, want %v", inner, outer, v, packet.DropECN)
					}
					continue
				}
				wantFrame := tosFrame(t, uint8(dscp)|codepoints[want])
				if v != packet.None || !bytes.Equal(f.Bytes(), wantFrame) {
					t.Fatalf("inner %s, outer %s, DSCP %#x: %v, frame %x, want %x", inner, outer, dscp, v, f.Bytes(), wantFrame)
				}
			}
		}
	}
}

func tosFrame(t *testing.T, tos uint8) []byte {
	s := plainUDP([]byte("x"))
	s.ip.TOS = tos
	return s.bytes(t)
}

// The incremental header checksum (RFC 1624) equals the one made anew, whatever the rest
// of the header is: an identification of all values walks through all checksums.
func TestDecapECNChecksum(t *testing.T) {
	b := packet.NewBatch(0)
	data := tosFrame(t, 2)
	ip := data[packet.EthernetLen:]
	for id := range 1 << 16 {
		ip[4], ip[5] = byte(id>>8), byte(id)
		refresh(ip)
		f := parsed(t, b, data)
		f.DecapECN(3)
		got := append([]byte(nil), f.Bytes()[packet.EthernetLen:]...)
		field := [2]byte(got[10:12])
		refresh(got)
		if got[1] != 3 || [2]byte(got[10:12]) != field {
			t.Fatalf("id %#x: TOS %#x, checksum %x, made anew %x", id, got[1], field, got[10:12])
		}
	}
}

func TestEncapECN(t *testing.T) {
	b := packet.NewBatch(0)
	for tos := range 256 {
		if got := parsed(t, b, tosFrame(t, uint8(tos))).EncapECN(); got != uint8(tos)&3 {
			t.Errorf("inner TOS %#x: outer %#x", tos, got)
		}
	}
}
