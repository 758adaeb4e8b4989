package conntrack

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"math/bits"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The memfd: a page of header, the IPv4 slots, the IPv6 slots. The header is 64-bit words in the machine's order, written
// once: magic, layout version, IPv4 flows and slots, IPv6 flows and slots, the hash key.
const (
	headerLen     = 4096
	magic         = 0x74756c6c65637431 // "tullect1"
	layoutVersion = 2                  // also of the hash, which says where an entry is

	minSlots = 512 // more than the probe sequence reaches, so that it never meets itself
)

// A hashKey makes collisions nothing that a peer can choose.
type hashKey [5]uint64

func newHashKey() hashKey {
	var b [8 * len(hashKey{})]byte
	rand.Read(b[:]) // never fails
	var k hashKey
	for i := range k {
		k[i] = binary.NativeEndian.Uint64(b[8*i:])
	}
	return k
}

// An area is the slots of one family.
type area struct {
	base  unsafe.Pointer // of slot 0
	slots uint64
	size  uint64 // of a slot, bytes: slotLen4 or slotLen6
	key   *hashKey
	stats *counters
	limit int64
	quota quota
	used  []atomic.Int32 // entries in each block of slots, at least
	_     [64]byte       // count changes with every insert, what is above never
	count atomic.Int64
	_     [64]byte
}

// blockSlots is how many slots have a common count of entries: a page of them or two. Whoever looks through the table passes blocks without
// entries by, and so leaves memory that was never written unmapped.
const blockSlots = 64

// occupied counts an entry that is about to be put into a slot (1), or was taken out of it (-1).
func (a *area) occupied(s uint64, change int32) { a.used[s/blockSlots].Add(change) }

// emptyUntil returns s, or the end of its block if that has no entries.
func (a *area) emptyUntil(s uint64) uint64 {
	if a.used[s/blockSlots].Load() > 0 {
		return s
	}
	return min((s/blockSlots+1)*blockSlots, a.slots)
}

// flows returns how many flows there are. Inserts on their way to finding the area full are not among them.
func (a *area) flows() int { return int(min(a.count.Load(), a.limit)) }

func slotsFor(flows int) uint64 {
	if flows == 0 {
		return 0
	}
	return max(2*uint64(flows), minSlots)
}

// size is that of the memfd, bytes.
func (c Config) size() int {
	return headerLen + int(slotsFor(c.Flows4))*slotLen4 + int(slotsFor(c.Flows6))*slotLen6
}

// header is what a table begins with, the hash key apart.
func (c Config) header() []uint64 {
	return []uint64{magic, layoutVersion, uint64(c.Flows4), slotsFor(c.Flows4), uint64(c.Flows6), slotsFor(c.Flows6)}
}

// create makes and maps the memfd.
func (t *Table) create(c Config) error {
	file, mem, err := mapMemfd(c.size())
	if err != nil {
		return err
	}
	for i, v := range append(c.header(), t.key[:]...) {
		binary.NativeEndian.PutUint64(mem[8*i:], v)
	}
	t.use(c, file, mem)
	return nil
}

// use makes the mapped memfd the table's.
func (t *Table) use(c Config, file *os.File, mem []byte) {
	t.file, t.mem = file, mem
	base, slots4, slots6 := unsafe.Pointer(&mem[0]), slotsFor(c.Flows4), slotsFor(c.Flows6)
	t.v4.init(t, unsafe.Add(base, headerLen), slots4, slotLen4, c.Flows4, c.PerSource)
	t.v6.init(t, unsafe.Add(base, headerLen+slots4*slotLen4), slots6, slotLen6, c.Flows6, c.PerSource)
}

func (a *area) init(t *Table, base unsafe.Pointer, slots, size uint64, flows, perSource int) {
	a.base, a.slots, a.size, a.limit = base, slots, size, int64(flows)
	a.key, a.stats = &t.key, &t.counters
	if slots > 0 {
		a.quota = newQuota(perSource)
	}
	a.used = make([]atomic.Int32, (slots+blockSlots-1)/blockSlots)
}

// mapMemfd returns a memfd of a size that nobody can change, and its memory.
func mapMemfd(size int) (*os.File, []byte, error) {
	fd, err := unix.MemfdCreate("tulle-flows", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, nil, fmt.Errorf("memfd_create: %w", err)
	}
	file := os.NewFile(uintptr(fd), "tulle-flows")
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		file.Close()
		return nil, nil, fmt.Errorf("size memfd to %d bytes: %w", size, err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW); err != nil {
		file.Close()
		return nil, nil, fmt.Errorf("seal memfd: %w", err)
	}
	mem, err := mapShared(file, size)
	if err != nil {
		file.Close()
		return nil, nil, err
	}
	return file, mem, nil
}

func mapShared(file *os.File, size int) ([]byte, error) {
	mem, err := unix.Mmap(int(file.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", size, err)
	}
	return mem, nil
}

// probes is the length of a home's probe sequence: with half of the slots in use, one insert in 10^8 finds it full.
const probes = 24

// probeAt returns the slot that is number i in home's sequence: triangular steps, near at first (one page, one prefetch),
// then far enough that runs of full slots don't grow.
func (a *area) probeAt(home uint64, i int) uint64 {
	s := home + uint64(i*(i+1)/2)
	if s >= a.slots {
		s -= a.slots
	}
	return s
}

// home maps a hash to a slot (Lemire's multiplication in place of modulo).
func (a *area) home(hash uint64) uint64 {
	hi, _ := bits.Mul64(hash, a.slots)
	return hi
}

// A slot is the words that both families have in common, a slot6 those of an IPv6 slot.
type (
	slot  [words4]atomic.Uint64
	slot6 [words6]atomic.Uint64
)

// slot returns slot s, which is below a.slots.
func (a *area) slot(s uint64) *slot { return (*slot)(unsafe.Add(a.base, s*a.size)) }

// wide returns a slot of the IPv6 area whole.
func (w *slot) wide() *slot6 { return (*slot6)(unsafe.Pointer(w)) }
