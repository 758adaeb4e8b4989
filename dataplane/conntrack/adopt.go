package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// An Adoption is what became of the entries of a table that was taken over.
type Adoption struct {
	Kept    int `json:"kept"`    // with their IDs, times and translations
	Torn    int `json:"torn"`    // of the kept: somebody held their slot's lock when he died
	Foreign int `json:"foreign"` // discarded: no table of this layout and this key has such entries
}

// Adopt takes over the table in the memfd of another process that has died. Its Config and its clock must be the same: times go on
// where they were. The caller makes sure that nobody else uses it. Nothing in it is believed: an entry that could not be where it is
// is discarded. The file is the table's from then on, unless there is an error: the memfd is not a table of this layout and size.
//
// Of a process that is killed each store has happened or has not. An insert writes to a slot that is free until its last store, and a
// removal is one store, so that what a dead process's locked slot holds was being advanced by a packet, or nothing was: tuple, translation
// and ID are whole, its state is the one before the packet, which went nowhere, and of a connection's windows some may be those after it. They
// are not checked any more. Which slots a home has is not read but found out anew: an insert or a removal that got to one of both only
// leaves a whole entry or none.
func Adopt(c Config, file *os.File, now time.Duration) (*Table, Adoption, error) {
	t, got := new(Table), Adoption{}
	if err := c.check(); err != nil {
		return nil, got, fmt.Errorf("adopt flow table: %w", err)
	}
	if err := t.open(c, file); err != nil {
		return nil, got, fmt.Errorf("adopt flow table: %w", err)
	}
	extents, err := written(file)
	if err != nil {
		unix.Munmap(t.mem)
		return nil, got, fmt.Errorf("adopt flow table: %w", err)
	}
	at := uint64(headerLen)
	for _, a := range []*area{&t.v4, &t.v6} {
		a.adopt(extents, at, seconds(now), &got)
		at += a.slots * a.size
	}
	t.adopted = uint64(got.Kept)
	return t, got, nil
}

// open maps a memfd and reads its header.
func (t *Table) open(c Config, file *os.File) error {
	size := c.size()
	seals, err := unix.FcntlInt(file.Fd(), unix.F_GET_SEALS, 0)
	if err != nil || seals&(unix.F_SEAL_SHRINK|unix.F_SEAL_GROW) != unix.F_SEAL_SHRINK|unix.F_SEAL_GROW {
		return errors.New("no memfd of a size that nobody can change")
	}
	if info, err := file.Stat(); err != nil || info.Size() != int64(size) {
		return errors.Join(fmt.Errorf("the memfd has not the %d bytes of this table", size), err)
	}
	mem, err := mapShared(file, size)
	if err != nil {
		return err
	}
	for i, want := range c.header() {
		if have := binary.NativeEndian.Uint64(mem[8*i:]); have != want {
			unix.Munmap(mem)
			return fmt.Errorf("word %d of the header is %#x, not %#x: of another layout or size", i, have, want)
		}
	}
	for i := range t.key {
		t.key[i] = binary.NativeEndian.Uint64(mem[8*(len(c.header())+i):])
	}
	t.use(c, file, mem)
	return nil
}

// An extent is the bytes from and up to an offset.
type extent struct{ from, to uint64 }

// written lists the parts of a memfd that were written, in whole pages: looking at the others would give them memory.
func written(file *os.File) (extents []extent, err error) {
	for at := int64(0); ; {
		from, err := unix.Seek(int(file.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return extents, nil
		}
		if err == nil {
			at, err = unix.Seek(int(file.Fd()), from, unix.SEEK_HOLE)
		}
		if err != nil {
			return nil, fmt.Errorf("look for what was written: %w", err)
		}
		extents = append(extents, extent{uint64(from), uint64(at)})
	}
}

// adopt discards what cannot be kept, and lets every home find its entries again. The area begins at that offset of the memfd.
func (a *area) adopt(extents []extent, start uint64, now uint32, got *Adoption) {
	each := func(f func(s uint64)) {
		for _, e := range extents {
			from, to := max(e.from, start)-start, min(e.to, start+a.slots*a.size)-min(start, e.to)
			for s := from / a.size; s < (to+a.size-1)/a.size; s++ {
				f(s)
			}
		}
	}
	each(func(s uint64) { a.cleanse(s, now, got) })
	each(func(s uint64) {
		if w := a.slot(s); stateOf(w[wCtrl].Load()) != free && !a.relist(s) {
			got.Foreign++
			w[wCtrl].Store(bump(w[wCtrl].Load()) &^ entryMask)
		}
	})
	got.Kept += int(a.count.Load())
}

// cleanse unlocks a slot, forgets which slots it is home to, and discards a foreign entry.
func (a *area) cleanse(s uint64, now uint32, got *Adoption) {
	w := a.slot(s)
	ctrl := w[wCtrl].Load()
	unlocked := ctrl & (entryMask | seqMask) &^ locked
	switch {
	case stateOf(ctrl) == free:
		unlocked &^= entryMask
	case !a.plausible(s, now):
		got.Foreign++
		unlocked = bump(unlocked) &^ entryMask
	case ctrl&locked != 0:
		got.Torn++
		if protoOf(ctrl) == protoTCP {
			unlocked |= liberal
		}
	}
	w[wCtrl].Store(unlocked)
}

// plausible says whether an entry is one that insert and lookup could have made by now.
func (a *area) plausible(s uint64, now uint32) bool {
	w := a.slot(s)
	ctrl := w[wCtrl].Load()
	e := read(w, ctrl)
	state, proto := stateOf(ctrl), protoOf(ctrl)
	const tcpOnly = liberal | 0xff<<scaleShift0
	switch {
	case state >= states, (proto == protoTCP) != (state < Unreplied), ctrl&(1<<31) != 0:
		return false
	case proto != protoTCP && (ctrl&tcpOnly != 0 || (state == Replied) != (ctrl&replied != 0)):
		return false
	case e.generation() == 0, int32(now-e.lastSeen()) < 0, int32(e.lastSeen()-e.created()) < 0:
		return false
	}
	k := a.loadKey(s, ctrl)
	return a.canonical(&k) && a.natFits(w)
}

// canonical says whether a key is as setKey makes it.
func (a *area) canonical(k *key) bool {
	t := a.tuple(k, false)
	var again key
	if a.size == slotLen4 {
		again.set4(&t)
	} else {
		again.set6(&t)
	}
	return again.addr == k.addr && again.ports == k.ports
}

// natFits says whether ports are translated only where an address is.
func (a *area) natFits(w *slot) bool {
	var nat NAT
	w.loadNAT(a.size, &nat)
	ports := w[wPorts].Load()
	return uint16(ports>>16) == nat.Src.Port() && uint16(ports) == nat.Dst.Port()
}

// relist lets the home of the entry in slot s find it, unless the slot is none of that home's, the home has one of this key, or the
// table is full.
func (a *area) relist(s uint64) bool {
	k := a.loadKey(s, a.slot(s)[wCtrl].Load())
	home := a.home(k.hash)
	h := &a.slot(home)[wCtrl]
	if _, _, twice := a.among(home, h.Load(), &k); twice || a.count.Load() >= a.limit {
		return false
	}
	for i := range probes {
		if a.probeAt(home, i) == s {
			h.Store(h.Load() | 1<<(homeBits+i))
			a.count.Add(1)
			a.quota.count(a.source(&k, a.slot(s)[wCtrl].Load()), 1)
			a.occupied(s, 1)
			return true
		}
	}
	return false
}
