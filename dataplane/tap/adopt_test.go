package tap_test

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tap"
)

// left is what another process has of a device: copies of its descriptors.
func left(t *testing.T, d *tap.Device) (files []int) {
	t.Helper()
	for _, fd := range d.Files() {
		c, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, c)
	}
	return files
}

// TestAdopt closes a TAP of which somebody else has the descriptors: link and address stay, and what the kernel sends meanwhile is read in
// its order by whoever adopts it; it takes frames as before.
func TestAdopt(t *testing.T) {
	const before, meanwhile = 5, 400
	for _, queues := range []int{1, 3} {
		t.Run(fmt.Sprint(queues), func(t *testing.T) {
			d, link := newTAP(t, queues)
			c := kernelSocket(t)
			send := func(from, to int) {
				for i := from; i < to; i++ {
					sendTo(t, c, []byte{byte(i >> 8), byte(i)}, 7000)
				}
			}
			send(0, before)
			files := left(t, d)
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			send(before, before+meanwhile)
			adopted, err := tap.Adopt(tapName, files)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { adopted.Close() })
			if adopted.Offloads != d.Offloads || len(adopted.Queues) != queues {
				t.Errorf("%s, was %s", adopted, d)
			}
			b, next := packet.NewBatch(8<<20), 0
			for _, q := range adopted.Queues { // one flow: one queue
				for next < before+meanwhile && readable(q.FD(), 100*1e6) {
					for _, f := range read(t, q, b) {
						if data := f.L4Bytes()[8:]; int(data[0])<<8|int(data[1]) != next {
							t.Fatalf("datagram %x where %d was to come", data, next)
						}
						next++
					}
				}
			}
			if next != before+meanwhile {
				t.Errorf("%d of %d datagrams", next, before+meanwhile)
			}
			b.Reset()
			udpFrame(t, b, link, c.LocalAddr(), []byte("back"))
			if err := adopted.Queues[0].Write(b); err != nil || string(received(t, c, 2e9)) != "back" {
				t.Errorf("a frame written to the adopted TAP: %v", err)
			}
		})
	}
}

// TestAdoptRefuses what is no queue of the TAP here, and leaves the descriptors open.
func TestAdoptRefuses(t *testing.T) {
	d, link := newTAP(t, 1)
	file, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fresh, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	tun, err := tap.OpenTUN("tulle-t1")
	if err != nil {
		t.Fatal(err)
	}
	defer tun.Close()
	refused := func(what, name string, files ...int) {
		t.Helper()
		if _, err := tap.Adopt(name, files); err == nil {
			t.Errorf("adopted %s", what)
		}
		for _, fd := range files {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
				t.Errorf("%s: descriptor closed", what)
			}
		}
	}
	queue := d.Queues[0].FD()
	refused("nothing", tapName)
	refused("a TAP of another name", "tulle-t2", queue)
	refused("a file", tapName, int(file.Fd()))
	refused("a queue of nothing", tapName, int(fresh.Fd()))
	refused("a TUN", "tulle-t1", tun.Queues[0].FD())
	refused("a queue and a file", tapName, queue, int(file.Fd()))
	if err := unix.IoctlSetPointerInt(queue, unix.TUNSETVNETHDRSZ, 12); err != nil {
		t.Fatal(err)
	}
	refused("another virtio_net_hdr", tapName, queue)
	unix.IoctlSetPointerInt(queue, unix.TUNSETVNETHDRSZ, packet.VNetLen)
	elsewhere(t, func() { refused("a TAP of another namespace", tapName, queue) })
	if _, err := tap.Adopt(tapName, []int{queue}); err != nil {
		t.Errorf("the TAP itself: %v", err)
	}
	if err := netlink.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	refused("a TAP that was removed", tapName, queue)
}

// elsewhere runs f in a namespace of its own.
func elsewhere(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		ns, err := netns.New()
		if err == nil {
			f()
			err = ns.Close()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(errors.Join(errors.New("a namespace"), err))
	}
}
