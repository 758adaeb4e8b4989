package conntrack

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/tulle-net/tulle/dataplane/word"
)

// TestTouch demands that what Touch loads is what a lookup looks at, in tables that are full, and that it changes nothing and stays in the
// table whatever the tuples are.
func TestTouch(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		const flows = 1000
		table, err := New(Config{Flows4: flows, Flows6: flows})
		if err != nil {
			t.Fatal(err)
		}
		defer table.Close()
		tuples := make([]Tuple, flows)
		for i := range tuples {
			tuples[i] = randomTuple(v6)
			if _, result := table.Insert(&Packet{Tuple: tuples[i]}, NAT{}, time.Hour); result != Inserted {
				t.Fatal(result)
			}
		}
		if found := touched(table, tuples); found < flows*93/100 {
			t.Errorf("IPv6 %t: of %d flows the lines of %d are touched", v6, flows, found)
		}
		before := bytes.Clone(table.mem)
		strange := append(tuples, Tuple{}, Tuple{Src: tuples[0].Src}, Tuple{Src: netip.IPv4Unspecified(), Dst: netip.IPv6Unspecified()})
		for range 10_000 {
			strange = append(strange, randomTuple(!v6), randomTuple(v6))
		}
		table.Touch(strange)
		table.Touch(nil)
		if !bytes.Equal(before, table.mem) {
			t.Errorf("IPv6 %t: the table has changed", v6)
		}
	}
}

// touched counts the tuples whose slot is among what is touched for them, to its end.
func touched(table *Table, tuples []Tuple) (found int) {
	for i := range tuples {
		var k key
		a := table.setKey(&k, &tuples[i])
		s, _, _ := a.find(&k)
		first := a.slot(s)
		last := (*slot)(unsafe.Add(unsafe.Pointer(first), a.size-slotLen4))
		var lines [4 * touchAtOnce]*slot
		if got := lines[:table.lines(tuples[i:i+1], &lines)]; slices.Contains(got, first) && slices.Contains(got, last) {
			found++
		}
	}
	return found
}

// TestTouchStaysInside looks at the lines of every slot and whatever its control word is, in the smallest table.
func TestTouchStaysInside(t *testing.T) {
	for _, c := range []Config{{Flows4: 1}, {Flows6: 1}} {
		table, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		defer table.Close()
		begin := uintptr(unsafe.Pointer(&table.mem[0]))
		for _, a := range []*area{&table.v4, &table.v6} {
			for home := range a.slots {
				first, second := entriesOf(rand.Uint64() & rand.Uint64() & rand.Uint64() & rand.Uint64() & rand.Uint64())
				for _, line := range [...]*slot{a.entry(home, first), a.entry(home, second)} {
					if a.size == slotLen6 {
						line = line.second()
					}
					if at := uintptr(unsafe.Pointer(line)) - begin; at > uintptr(len(table.mem)-slotLen4) {
						t.Fatalf("home %d: a line at %d of %d bytes", home, int(at), len(table.mem))
					}
				}
			}
		}
	}
}

func randomTuple(v6 bool) Tuple {
	v := Tuple{SrcPort: uint16(rand.Uint32()), DstPort: uint16(rand.Uint32()), Proto: 17}
	if v6 {
		v.Src, v.Dst = word.FromHalves(0xfd<<56, rand.Uint64()), word.FromHalves(0xfd<<56, rand.Uint64())
		return v
	}
	v.Src, v.Dst = word.From4(rand.Uint32()), word.From4(rand.Uint32())
	return v
}
