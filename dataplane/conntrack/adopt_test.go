package conntrack_test

import (
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/conntrack"
)

// asCrowd makes the test binary work on the table in its descriptor 3 until it is killed.
const asCrowd = "TULLE_TEST_AS_CROWD"

func TestMain(m *testing.M) {
	if os.Getenv(asCrowd) != "" {
		os.Exit(runCrowd())
	}
	os.Exit(m.Run())
}

// inherit adopts what a table is in, as the next process does: from a descriptor of its own.
func inherit(tb testing.TB, from *os.File, c conntrack.Config, now time.Duration) (*conntrack.Table, conntrack.Adoption) {
	tb.Helper()
	table, got, err := conntrack.Adopt(c, duplicate(tb, from), now)
	if err != nil {
		tb.Fatal(err)
	}
	return table, got
}

func duplicate(tb testing.TB, f *os.File) *os.File {
	tb.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	return os.NewFile(uintptr(fd), f.Name())
}

var crowdConfig = conntrack.Config{Flows4: 301, Flows6: 301}

// runCrowd is a process full of workers.
func runCrowd() int {
	table, _, err := conntrack.Adopt(crowdConfig, os.NewFile(3, "flows"), time.Hour)
	if err != nil {
		os.Stderr.WriteString(err.Error())
		return 1
	}
	for w := range uint64(3) {
		go func() {
			r := rand.New(rand.NewPCG(rand.Uint64(), w))
			for {
				p := crowdPacket(r.IntN(pinned + others))
				now := time.Hour + time.Duration(r.IntN(1000))*time.Millisecond
				packet := p
				if r.IntN(2) == 0 {
					packet = reversed(p)
				}
				hit, ok := table.Lookup(&packet, now)
				if !ok {
					hit, _ = table.Insert(&p, crowdNAT(p), now)
				}
				if r.IntN(10) == 0 {
					table.Delete(hit.ID)
				}
			}
		}()
	}
	os.Stdout.WriteString("works")
	os.Stdout.Close()
	select {}
}

// TestAdoptAfterKill kills a process with three workers again and again while they insert, look up, evict and delete, and takes over what
// they leave: every flow is whole, is found, has one ID, and can be removed.
func TestAdoptAfterKill(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	first := newTable(t, crowdConfig)
	var all conntrack.Adoption
	for range 60 {
		cmd := exec.Command(self)
		cmd.Env, cmd.ExtraFiles, cmd.Stderr = append(os.Environ(), asCrowd+"=1"), []*os.File{first.File()}, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if n, err := out.Read(make([]byte, 10)); n == 0 {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(5_000_000)))
		cmd.Process.Kill()
		cmd.Wait()
		table, got := inherit(t, first.File(), crowdConfig, time.Hour+time.Second)
		if got.Foreign != 0 || got.Torn > 2*3 { // a worker holds two locks at most
			t.Errorf("after a kill of three workers: %+v", got)
		}
		c := &crowd{t: t, table: table}
		c.clock.Store(int64(time.Hour + time.Second))
		c.checkWhole(got)
		all.Kept, all.Torn = all.Kept+got.Kept, all.Torn+got.Torn
		if err := table.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%+v", all)
	if all.Kept < 60*300 {
		t.Errorf("%+v: the workers did nothing", all)
	}
}

// checkWhole looks at everything in a table that was adopted, and takes half of it out.
func (c *crowd) checkWhole(got conntrack.Adoption) {
	c.t.Helper()
	if s := c.table.Stats(); s.Flows4+s.Flows6 != got.Kept || s.Adopted != uint64(got.Kept) {
		c.t.Errorf("%+v after %+v", s, got)
	}
	listed := map[conntrack.Tuple]bool{}
	for f := range c.table.Flows(c.now()) {
		if listed[f.Tuple] {
			c.t.Errorf("%+v is there twice", f.Tuple)
		}
		listed[f.Tuple] = true
		want := crowdPacket(int(f.Tuple.SrcPort))
		if f.Tuple != want.Tuple || f.NAT != crowdNAT(want) || f.Created < time.Hour {
			c.t.Errorf("torn: %+v", f)
		}
		if found, ok := c.table.Find(f.Tuple, c.now()); !ok || found != f {
			c.t.Errorf("Flows lists %+v, Find finds %+v, %v", f, found, ok)
		}
	}
	if len(listed) != got.Kept {
		c.t.Errorf("%d flows, %+v", len(listed), got)
	}
	deleted := 0
	for f := range c.table.Flows(c.now()) {
		if f.Tuple.SrcPort%2 == 0 {
			if deleted++; !c.table.Delete(f.ID) {
				c.t.Errorf("%+v cannot be deleted", f)
			}
		}
	}
	if s := c.table.Stats(); s.Flows4+s.Flows6 != got.Kept-deleted {
		c.t.Errorf("%+v after %d were deleted of %+v", s, deleted, got)
	}
}

// TestAdoptDamaged flips bits and writes words at random places of a memfd. Nothing of it is believed that cannot be: what is kept is
// whole in itself, and the table works.
func TestAdoptDamaged(t *testing.T) {
	r := rand.New(rand.NewPCG(newSeed(t), 0))
	var all conntrack.Adoption
	for range 200 {
		old := newTable(t, crowdConfig)
		for range 600 {
			p := crowdPacket(r.IntN(pinned + others))
			old.Insert(&p, crowdNAT(p), time.Hour)
		}
		mem, err := unix.Mmap(int(old.File().Fd()), 0, fileSize(t, old.File()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		for range 1 + r.IntN(3000) {
			at := 4096 + r.IntN(len(mem)-4096)
			switch r.IntN(4) {
			case 0:
				mem[at] = byte(r.Uint32())
			case 1:
				copy(mem[at&^63:], mem[4096+r.IntN(len(mem)-4096)&^63:][:64]) // a slot at the place of another
			default:
				mem[at] ^= 1 << r.IntN(8)
			}
		}
		unix.Munmap(mem)
		table, got := inherit(t, old.File(), crowdConfig, time.Hour+time.Second)
		all.Kept, all.Torn, all.Foreign = all.Kept+got.Kept, all.Torn+got.Torn, all.Foreign+got.Foreign
		seen := map[conntrack.Tuple]bool{}
		for f := range table.Flows(time.Hour + time.Second) {
			back := f.Tuple
			back.Src, back.Dst, back.SrcPort, back.DstPort = back.Dst, back.Src, back.DstPort, back.SrcPort
			if seen[f.Tuple] || seen[back] {
				t.Errorf("%+v is there twice", f)
			}
			seen[f.Tuple] = true
			if found, ok := table.Find(back, time.Hour+time.Second); !ok || found != f {
				t.Errorf("Flows lists %+v, Find finds %+v, %v", f, found, ok)
			}
		}
		for range 2000 { // ends, and breaks no count
			p := crowdPacket(r.IntN(pinned + others))
			if _, ok := table.Lookup(&p, time.Hour+time.Second); !ok {
				table.Insert(&p, crowdNAT(p), time.Hour+time.Second)
			}
		}
		table.Sweep(1000*time.Hour, 1<<20)
		if s := table.Stats(); s.Flows4+s.Flows6 != 0 || s.Adopted+s.Inserted != s.Expired+s.Evicted+s.Deleted {
			t.Fatalf("%+v", s)
		}
		if err := table.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%+v", all)
	if all.Kept == 0 || all.Torn == 0 || all.Foreign == 0 {
		t.Errorf("%+v: the damage did not reach all of it", all)
	}
}

func fileSize(t *testing.T, f *os.File) int {
	t.Helper()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return int(info.Size())
}

// TestAdoptRefuses what is no table, or one of another size, layout or version, and leaves it alone.
func TestAdoptRefuses(t *testing.T) {
	c := conntrack.Config{Flows4: 1000, Flows6: 10}
	old := newTable(t, c)
	for _, other := range []conntrack.Config{{Flows4: 1000}, {Flows4: 1001, Flows6: 10}, {Flows4: 10, Flows6: 1000}, {Flows4: -1}, {Flows4: 999, Flows6: 11}, {}} {
		file := duplicate(t, old.File())
		if _, _, err := conntrack.Adopt(other, file, 0); err == nil {
			t.Errorf("%+v adopted as %+v", c, other)
		}
		file.Close()
	}
	for word := range 6 {
		file := duplicate(t, old.File())
		var b [8]byte
		if _, err := file.ReadAt(b[:], int64(8*word)); err != nil {
			t.Fatal(err)
		}
		b[0] ^= 1
		file.WriteAt(b[:], int64(8*word))
		if _, _, err := conntrack.Adopt(c, file, 0); err == nil {
			t.Errorf("adopted with word %d of the header changed", word)
		}
		b[0] ^= 1
		file.WriteAt(b[:], int64(8*word))
		file.Close()
	}
	fd, err := unix.MemfdCreate("tulle-test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	loose := os.NewFile(uintptr(fd), "loose")
	defer loose.Close()
	whole := make([]byte, fileSize(t, old.File()))
	old.File().ReadAt(whole, 0)
	loose.Write(whole)
	if _, _, err := conntrack.Adopt(c, loose, 0); err == nil || !strings.Contains(err.Error(), "size") {
		t.Errorf("adopted a memfd that somebody can cut: %v", err)
	}
	table, got := inherit(t, old.File(), c, 0)
	if got != (conntrack.Adoption{}) {
		t.Errorf("an empty table: %+v", got)
	}
	table.Close()
}

// TestAdoptLeavesHolesAlone: pages that were never written get no memory by being looked at.
func TestAdoptLeavesHolesAlone(t *testing.T) {
	c := conntrack.Config{Flows4: 1 << 18, Flows6: 1 << 18}
	old := newTable(t, c)
	p := crowdPacket(0)
	old.Insert(&p, conntrack.NAT{}, 0)
	blocks := func() int64 {
		var st unix.Stat_t
		if err := unix.Fstat(int(old.File().Fd()), &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks
	}
	before := blocks()
	table, got := inherit(t, old.File(), c, 0)
	defer table.Close()
	if after := blocks(); after != before || got.Kept != 1 {
		t.Errorf("%d blocks of 512 bytes after, %d before, %+v", after, before, got)
	}
}

// TestAdoptFuture discards what comes from a clock that is ahead: of another boot.
func TestAdoptFuture(t *testing.T) {
	c := conntrack.Config{Flows4: 10}
	old := newTable(t, c)
	p := numbered(1, false, 17)
	old.Insert(&p, conntrack.NAT{Src: netip.MustParseAddrPort("192.0.2.1:7")}, time.Hour)
	table, got := inherit(t, old.File(), c, time.Minute)
	if got != (conntrack.Adoption{Foreign: 1}) {
		t.Errorf("%+v", got)
	}
	table.Close()
}
