package packet_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/tulle-net/tulle/dataplane/packet"
)

func TestVerdictNames(t *testing.T) {
	snake := regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`)
	seen := map[string]packet.Verdict{}
	for v := packet.None; v < packet.NumVerdicts; v++ {
		name := v.String()
		if other, ok := seen[name]; ok || !snake.MatchString(name) {
			t.Errorf("verdict %d is called %q, as is %d", v, name, other)
		}
		seen[name] = v
	}
	if _, ok := seen[packet.Verdict(packet.NumVerdicts).String()]; ok {
		t.Errorf("a verdict that does not exist is called %v", packet.Verdict(packet.NumVerdicts))
	}
}

func TestVerdictClasses(t *testing.T) {
	for v := packet.None + 1; v < packet.NumVerdicts; v++ {
		classes := 0
		for _, in := range []bool{v.Sent(), v.Consumed(), v.Dropped()} {
			if in {
				classes++
			}
		}
		if classes != 1 {
			t.Errorf("%v is in %d classes", v, classes)
		}
		if isDrop := len(v.String()) > 5 && v.String()[:5] == "drop_"; isDrop != v.Dropped() {
			t.Errorf("%v: Dropped is %v", v, v.Dropped())
		}
	}
	for _, v := range []packet.Verdict{packet.None, packet.NumVerdicts, 255} {
		if v.Sent() || v.Consumed() || v.Dropped() {
			t.Errorf("%d is in a class", v)
		}
	}
}

func TestVNetRoundTrip(t *testing.T) {
	r := newRand(t)
	for range 1000 {
		v := packet.VNet{
			Flags: uint8(r.Uint32()), GSOType: uint8(r.Uint32()) &^ 0x80, HdrLen: uint16(r.Uint32()),
			GSOSize: uint16(r.Uint32()), CsumStart: uint16(r.Uint32()), CsumOffset: uint16(r.Uint32()),
		}
		var b [packet.VNetLen]byte
		v.Encode(b[:])
		if got := packet.DecodeVNet(b[:]); got != v {
			t.Fatalf("%+v becomes %x becomes %+v", v, b, got)
		}
	}
}

// The layout of include/uapi/linux/virtio_net.h, on a little-endian machine.
func TestVNetLayout(t *testing.T) {
	want := packet.VNet{Flags: 1, GSOType: 1, HdrLen: 0x0203, GSOSize: 0x0405, CsumStart: 0x0607, CsumOffset: 0x0809}
	wire := []byte{1, 1 | 0x80, 3, 2, 5, 4, 7, 6, 9, 8} // GSO_ECN says only that CWR may be set
	if got := packet.DecodeVNet(wire); got != want || !got.NeedsCsum() {
		t.Errorf("DecodeVNet = %+v, want %+v", got, want)
	}
}

// TestCauses demands a sentence of its own for each verdict; a drop's is long enough to say where to look.
func TestCauses(t *testing.T) {
	seen := map[string]packet.Verdict{}
	for v := packet.None; v <= packet.NumVerdicts; v++ {
		cause := v.Cause()
		if other, ok := seen[cause]; ok || cause == "" {
			t.Errorf("%v: cause %q, as of %v", v, cause, other)
		}
		seen[cause] = v
		if strings.HasSuffix(cause, ".") || strings.ToLower(cause[:1]) != cause[:1] || strings.ContainsAny(cause, "\n\t") {
			t.Errorf("%v: cause %q is no part of a sentence", v, cause)
		}
		if v.Dropped() && len(strings.Fields(cause)) < 8 {
			t.Errorf("%v: cause %q says nothing to look at", v, cause)
		}
	}
}
