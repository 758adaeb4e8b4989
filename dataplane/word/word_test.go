package word

import (
	"math/rand/v2"
	"net/netip"
	"testing"
)

// TestHalves compares the quick way with netip's, and demands that the quick way is taken with this netip.
func TestHalves(t *testing.T) {
	if !layoutKnown {
		t.Error("the layout of netip.Addr is another one")
	}
	for range 1000 {
		hi, lo := rand.Uint64(), rand.Uint64()
		a := FromHalves(hi, lo).WithZone("z")
		quickHi, quickLo := Halves(&a)
		slow := slowHalves(&a)
		slowHi, slowLo := slow[0], slow[1]
		if quickHi != hi || quickLo != lo || slowHi != hi || slowLo != lo {
			t.Fatalf("%s: %x %x, netip says %x %x, want %x %x", a, quickHi, quickLo, slowHi, slowLo, hi, lo)
		}
	}
	four := netip.MustParseAddr("1.2.3.4")
	if v := Of4(&four); v != 0x01020304 || From4(v) != netip.MustParseAddr("1.2.3.4") {
		t.Errorf("1.2.3.4 is %x, and back %s", v, From4(v))
	}
}
