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
	for inner, row := range rfc6040 {
		for column, want := range row {
			for dscp := 0; dscp < 256; dscp += 4 {
				checkDecapECN(t, plainUDP([]byte("x")), uint8(dscp), inner, rfc6040Columns[column], want)
				checkDecapECN(t, plainUDP([]byte("x")).overIPv6(), uint8(dscp), inner, rfc6040Columns[column], want)
			}
		}
	}
}

// checkDecapECN decapsulates the packet with an inner and an outer codepoint, the outer with another DSCP.
func checkDecapECN(t *testing.T, s stack, dscp uint8, inner, outer, want string) {
	t.Helper()
	f := parsed(t, packet.NewBatch(0), s.withTOS(dscp|codepoints[inner]).bytes(t))
	v := f.DecapECN(^dscp&^3 | codepoints[outer])
	if want == "drop" {
		if v != packet.DropECN {
			t.Fatalf("inner %s, outer %s: %v, want %v", inner, outer, v, packet.DropECN)
		}
		return
	}
	wantFrame := s.withTOS(dscp | codepoints[want]).bytes(t)
	if v != packet.None || !bytes.Equal(f.Bytes(), wantFrame) {
		t.Fatalf("inner %s, outer %s, DSCP %#x: %v, frame %x, want %x", inner, outer, dscp, v, f.Bytes(), wantFrame)
	}
}

// withTOS sets the TOS or traffic class byte; the flow label of IPv6 next to it is all ones.
func (s stack) withTOS(tos uint8) stack {
	s.ip.TOS = tos
	if s.ip6 != nil {
		ip6 := *s.ip6
		ip6.TrafficClass, ip6.FlowLabel = tos, 0xfffff
		s.ip6 = &ip6
	}
	return s
}

// The incremental header checksum (RFC 1624) equals the one made anew, whatever the rest
// of the header is: an identification of all values walks through all checksums.
func TestDecapECNChecksum(t *testing.T) {
	b := packet.NewBatch(0)
	data := plainUDP([]byte("x")).withTOS(2).bytes(t)
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

func TestEncapTOS(t *testing.T) {
	b := packet.NewBatch(0)
	for tos := range 256 {
		for _, s := range []stack{plainUDP([]byte("x")), plainUDP([]byte("x")).overIPv6()} {
			f := parsed(t, b, s.withTOS(uint8(tos)).bytes(t))
			ecn, none, all := f.EncapECN(), f.EncapTOS(false), f.EncapTOS(true)
			if ecn != uint8(tos)&3 || none != ecn || all != uint8(tos) {
				t.Errorf("inner TOS %#x: outer %#x, without DSCP %#x, with DSCP %#x", tos, ecn, none, all)
			}
		}
	}
}
