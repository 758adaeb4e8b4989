package conntrack

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestAdoptLocked takes over a table in which slots were locked when their process died: a connection half advanced, the home of an
// entry elsewhere, an insert and a removal at each of their stores.
func TestAdoptLocked(t *testing.T) {
	c := Config{Flows4: 10}
	syn := Packet{Tuple: Tuple{Src: netip.AddrFrom4([4]byte{10, 0, 0, 1}), Dst: netip.AddrFrom4([4]byte{10, 0, 0, 2}), SrcPort: 1, DstPort: 2, Proto: protoTCP},
		TCP: Segment{Seq: 1, Flags: SYN, Window: 1000}}
	nat := NAT{Dst: netip.MustParseAddrPort("192.0.2.1:80")}
	for _, x := range []struct {
		name   string
		damage func(w, home *slot)
		want   Adoption
	}{
		{"nothing", func(w, home *slot) {}, Adoption{Kept: 1}},
		{"locked", func(w, home *slot) { w[wCtrl].Add(locked) }, Adoption{Kept: 1, Torn: 1}},
		{"half advanced", func(w, home *slot) { w[wCtrl].Add(locked); w[wSent0].Store(5); w[wTimes].Add(1) }, Adoption{Kept: 1, Torn: 1}},
		{"inserted, but not told its home", func(w, home *slot) { home[wCtrl].Store(home[wCtrl].Load()&(1<<homeBits-1) | locked) }, Adoption{Kept: 1, Torn: 1}},
		{"removed, but not from its home", func(w, home *slot) { w[wCtrl].Store(w[wCtrl].Load() &^ entryMask) }, Adoption{}},
		{"written, but not yet there", func(w, home *slot) { w[wCtrl].Store(w[wCtrl].Load()&^entryMask | locked) }, Adoption{}},
	} {
		t.Run(x.name, func(t *testing.T) {
			old, err := New(c)
			if err != nil {
				t.Fatal(err)
			}
			defer old.Close()
			hit, _ := old.Insert(&syn, nat, time.Second)
			k := key{}
			old.setKey(&k, &syn.Tuple)
			_, s, _ := old.locate(hit.ID)
			x.damage(old.v4.slot(s), old.v4.slot(old.v4.home(k.hash)))
			fd, err := unix.FcntlInt(old.File().Fd(), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			table, got, err := Adopt(c, os.NewFile(uintptr(fd), "flows"), 3*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			defer table.Close()
			if got != x.want {
				t.Errorf("%+v, want %+v", got, x.want)
			}
			f, ok := table.Find(syn.Tuple, 3*time.Second)
			if ok != (got.Kept == 1) || ok && (f.ID != hit.ID || f.NAT != nat || f.Created != time.Second || f.Tuple != syn.Tuple) {
				t.Errorf("%+v, %v, want ID %x", f, ok, hit.ID)
			}
			if ack := (Packet{Tuple: syn.Tuple, TCP: Segment{Seq: 1, Flags: SYN, Window: 1000}}); ok { // sent again: it went nowhere
				if again, ok := table.Lookup(&ack, 3*time.Second); !ok || again.ID != hit.ID || again.OutOfWindow {
					t.Errorf("the SYN again: %+v, %v", again, ok)
				}
			} else if again, result := table.Insert(&syn, nat, 3*time.Second); result != Inserted || again.ID == hit.ID {
				t.Errorf("inserted again: %+v, %v", again, result)
			}
		})
	}
}
