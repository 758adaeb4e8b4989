package conntrack_test

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tulle-net/tulle/dataplane/conntrack"
)

// A crowd is goroutines at work on one table. The packets of flow i, and its NAT, are functions of i: whoever sees a
// flow can tell whether it is torn.
type crowd struct {
	t     *testing.T
	table *conntrack.Table
	clock atomic.Int64
	stop  atomic.Bool
	group sync.WaitGroup
	names sync.Map // ID to Tuple
}

const (
	pinned = 40   // flows that nobody deletes, and that are kept alive
	others = 2000 // that come and go, more than there is room for
)

func (c *crowd) now() time.Duration { return time.Duration(c.clock.Load()) }

func crowdPacket(i int) conntrack.Packet {
	p := numbered(uint32(i), i%2 == 1, 17)
	p.DstPort = p.SrcPort ^ 0x5555
	return p
}

func crowdNAT(p conntrack.Packet) conntrack.NAT {
	to := p.Dst.As16()
	to[13], to[14] = byte(p.SrcPort>>8), byte(p.SrcPort)
	addr := netip.AddrFrom16(to)
	if p.Src.Is4() {
		addr = addr.Unmap()
	}
	return conntrack.NAT{Dst: netip.AddrPortFrom(addr, ^p.SrcPort)}
}

func reversed(p conntrack.Packet) conntrack.Packet {
	p.Src, p.Dst, p.SrcPort, p.DstPort = p.Dst, p.Src, p.DstPort, p.SrcPort
	return p
}

// check judges one flow that was seen, by whatever way.
func (c *crowd) check(id conntrack.ID, tuple conntrack.Tuple, nat conntrack.NAT) {
	want := crowdPacket(int(tuple.SrcPort))
	if tuple != want.Tuple || nat != crowdNAT(want) {
		c.t.Errorf("flow %x is torn: %+v %+v", id, tuple, nat)
	}
	if named, ok := c.names.LoadOrStore(id, tuple); ok && named != tuple {
		c.t.Errorf("ID %x names %+v and %+v", id, named, tuple)
	}
}

// start runs do again and again until stop, with a random source of its own.
func (c *crowd) start(seed uint64, do func(*rand.Rand)) {
	c.group.Go(func() {
		r := rand.New(rand.NewPCG(seed, 1))
		for !c.stop.Load() && !c.t.Failed() {
			do(r)
		}
	})
}

// work is a worker: lookups, and inserts when they miss.
func (c *crowd) work(r *rand.Rand) {
	i := r.IntN(pinned + others)
	p := crowdPacket(i)
	packet := p
	if i < pinned && r.IntN(2) == 0 {
		packet = reversed(p)
	}
	hit, ok := c.table.Lookup(&packet, c.now())
	if !ok && i < pinned {
		c.t.Errorf("flow %d was kept alive and is gone", i)
	}
	if !ok {
		var result conntrack.Result
		if hit, result = c.table.Insert(&packet, crowdNAT(p), c.now()); result == conntrack.Full {
			return
		}
	}
	c.check(hit.ID, p.Tuple, hit.NAT)
}

func (c *crowd) delete(r *rand.Rand) {
	p := crowdPacket(pinned + r.IntN(others))
	if f, ok := c.table.Find(p.Tuple, c.now()); ok {
		c.check(f.ID, f.Tuple, f.NAT)
		c.table.Delete(f.ID)
	}
}

func (c *crowd) list(*rand.Rand) {
	listed := map[uint16]int{}
	for f := range c.table.Flows(c.now()) {
		c.check(f.ID, f.Tuple, f.NAT)
		listed[f.Tuple.SrcPort]++
	}
	for i := range uint16(pinned) {
		if listed[i] != 1 {
			c.t.Errorf("flow %d was there all the time, and is listed %d times", i, listed[i])
		}
	}
}

// tick keeps the pinned flows alive and moves the clock on.
func (c *crowd) tick(*rand.Rand) {
	for i := range pinned {
		p := crowdPacket(i)
		c.table.Lookup(&p, c.now())
	}
	c.clock.Add(int64(10 * time.Second))
	c.table.Sweep(c.now(), 100)
	time.Sleep(100 * time.Microsecond)
}

func TestConcurrentUse(t *testing.T) {
	c := &crowd{t: t, table: newTable(t, conntrack.Config{Flows4: 300, Flows6: 300})}
	for i := range pinned {
		p := crowdPacket(i)
		back := reversed(p)
		if _, result := c.table.Insert(&p, crowdNAT(p), 0); result != conntrack.Inserted {
			t.Fatal(result)
		}
		if hit, ok := c.table.Lookup(&back, 0); !ok || hit.State != conntrack.Replied {
			t.Fatalf("%+v, %v", hit, ok)
		}
	}
	seed := newSeed(t)
	for i := range uint64(4) {
		c.start(seed+i, c.work)
	}
	c.start(seed+4, c.delete)
	c.start(seed+5, c.list)
	c.start(seed+6, c.tick)
	time.Sleep(2 * time.Second)
	c.stop.Store(true)
	c.group.Wait()
	c.checkQuiet()
}

// checkQuiet: when all is still, no tuple is there twice, and the counts agree with what is there.
func (c *crowd) checkQuiet() {
	c.table.Sweep(c.now(), 1<<20)
	listed := map[conntrack.Tuple]conntrack.ID{}
	for f := range c.table.Flows(c.now()) {
		if other, ok := listed[f.Tuple]; ok {
			c.t.Errorf("%+v is there as %x and as %x", f.Tuple, other, f.ID)
		}
		listed[f.Tuple] = f.ID
		if found, ok := c.table.Find(f.Tuple, c.now()); !ok || found != f {
			c.t.Errorf("Flows lists %+v, Find finds %+v, %v", f, found, ok)
		}
	}
	s := c.table.Stats()
	if s.Flows4+s.Flows6 != len(listed) || s.Inserted != uint64(len(listed))+s.Expired+s.Evicted+s.Deleted {
		c.t.Errorf("%+v do not add up to %d flows", s, len(listed))
	}
	if s.Evicted == 0 || s.Expired == 0 || s.Deleted == 0 {
		c.t.Errorf("%+v: the test did not reach all of it", s)
	}
	c.t.Logf("%+v", s)
}

// Of workers that insert one tuple at once, one inserts it, the others find it, from whichever end they see it.
func TestConcurrentInsert(t *testing.T) {
	const workers, rounds = 4, 20_000
	table := newTable(t, conntrack.Config{Flows4: rounds, Flows6: rounds})
	var inserted [rounds]atomic.Int32
	var ids [rounds]atomic.Uint64
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for i := range rounds {
				p := crowdPacket(i)
				if w%2 == 1 {
					p = reversed(p)
				}
				hit, result := table.Insert(&p, conntrack.NAT{}, now)
				if result == conntrack.Inserted {
					inserted[i].Add(1)
				} else if result != conntrack.Exists {
					t.Errorf("flow %d: %v", i, result)
				}
				if old := ids[i].Swap(uint64(hit.ID)); old != 0 && old != uint64(hit.ID) || hit.ID == 0 {
					t.Errorf("flow %d has the IDs %x and %x", i, old, hit.ID)
				}
			}
		})
	}
	group.Wait()
	for i := range inserted {
		if n := inserted[i].Load(); n != 1 {
			t.Errorf("flow %d was inserted %d times", i, n)
		}
	}
}

// The two directions of one connection on two workers that don't wait for each other: no segment is ever out of window,
// and nothing of either's is lost.
func TestConcurrentDirections(t *testing.T) {
	const segments, length = 500_000, 1448
	c := newConversation(t, conntrack.Config{Flows4: 10})
	for _, step := range []string{"> S", "< SA"} {
		p := c.packet(step)
		p.TCP.Window, p.TCP.Options = 65535, []byte{3, 3, 14, 0}
		c.see(p)
	}
	data, ack := c.packet("> A"), c.packet("< A")
	data.TCP.Len, data.TCP.Window, ack.TCP.Window = length, 65535, 65535
	at, first := ack, data.TCP.Seq
	look := func(p *conntrack.Packet) {
		if hit, ok := c.table.Lookup(p, now); !ok || hit.OutOfWindow || hit.State < conntrack.SynRecv {
			t.Errorf("%+v: %+v, %v", p.TCP, hit, ok)
		}
	}
	var sent atomic.Uint32
	var group sync.WaitGroup
	group.Go(func() {
		for i := range uint32(segments) {
			data.TCP.Seq = first + i*length
			look(&data)
			at.TCP.Ack = data.TCP.Seq + length
			look(&at) // the very last byte is known to be sent
			sent.Store(i + 1)
		}
	})
	group.Go(func() {
		for n := uint32(0); n < segments && !t.Failed(); {
			n = sent.Load()
			ack.TCP.Ack, ack.TCP.Window = first+n*length, 65535-uint16(n%2)
			look(&ack)
		}
	})
	group.Wait()
	if ack.TCP.Ack++; !c.see(ack).OutOfWindow {
		t.Error("more is acknowledged than was sent")
	}
}

// A flow that is answered while it is being evicted either goes, or stays for good.
func TestConcurrentReply(t *testing.T) {
	table := newTable(t, conntrack.Config{Flows4: 1})
	p := numbered(0, false, 17)
	back := reversed(p)
	var rivals []conntrack.Packet // that evict p
	for i := uint32(1); len(rivals) < 8; i++ {
		table.Insert(&p, conntrack.NAT{}, now)
		rival := numbered(i, false, 17)
		if hit, result := table.Insert(&rival, conntrack.NAT{}, now); result == conntrack.Inserted {
			rivals = append(rivals, rival)
			table.Delete(hit.ID)
		}
	}
	var stop atomic.Bool
	var group sync.WaitGroup
	group.Go(func() {
		for i := 0; !stop.Load(); i++ {
			hit, _ := table.Insert(&rivals[i%len(rivals)], conntrack.NAT{}, now)
			table.Delete(hit.ID)
		}
	})
	kept := 0
	for range 1_000_000 {
		table.Insert(&p, conntrack.NAT{}, now)
		if hit, ok := table.Lookup(&back, now); ok {
			if kept++; !table.Delete(hit.ID) {
				t.Errorf("%+v was answered, and is gone", hit)
				break
			}
		}
	}
	stop.Store(true)
	group.Wait()
	t.Logf("%d answered, %+v", kept, table.Stats())
}
