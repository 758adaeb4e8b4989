package tap_test

import (
	"bytes"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tap"
)

// openPod makes a pod's TAP with an address, and the link.
func openPod(t *testing.T) (*tap.Pod, netlink.Link) {
	t.Helper()
	inNamespace(t)
	p, err := tap.OpenPod(tapName)
	if err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName(tapName)
	if err != nil {
		t.Fatal(err)
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: kernelAddr, Mask: net.CIDRMask(24, 32)}}
	neighbour := &netlink.Neigh{LinkIndex: link.Attrs().Index, IP: farAddr, HardwareAddr: farMAC, State: netlink.NUD_PERMANENT}
	if err := errors.Join(netlink.AddrAdd(link, address), netlink.LinkSetUp(link), netlink.NeighSet(neighbour)); err != nil {
		t.Fatal(err)
	}
	return p, link
}

// payloads reads what waits of UDP on a port, by the queue of one of two workers.
func payloads(t *testing.T, p *tap.Pod) (all [][]byte) {
	t.Helper()
	q, b := p.Ports(2)[1], packet.NewBatch(1<<20)
	for readable(q.FD(), 100*time.Millisecond) {
		b.Reset()
		for _, f := range read(t, q, b) {
			if f.Parse() == packet.None && f.Proto == packet.ProtoUDP {
				all = append(all, bytes.Clone(f.Bytes()[f.Payload-f.Start():]))
			}
		}
	}
	return all
}

// TestPod closes a pod's TAP: link and address stay, and what is opened or adopted in its place has the other end. Nobody has it twice.
func TestPod(t *testing.T) {
	p, _ := openPod(t)
	c := kernelSocket(t)
	sendTo(t, c, []byte("first"), 7000)
	if got := payloads(t, p); len(got) != 1 || string(got[0]) != "first" {
		t.Fatalf("read %q", got)
	}
	if _, err := tap.OpenPod(tapName); !errors.Is(err, unix.EBUSY) {
		t.Errorf("opened twice: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := tap.OpenPod(tapName)
	if err != nil {
		t.Fatal(err)
	}
	copied, err := unix.FcntlInt(uintptr(again.File()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	sendTo(t, c, []byte("second"), 7000)
	again.Close()
	adopted, err := tap.AdoptPod(copied)
	if err != nil {
		t.Fatal(err)
	}
	defer adopted.Close()
	if got := payloads(t, adopted); len(got) != 1 || string(got[0]) != "second" {
		t.Errorf("after both: read %q", got)
	}
	if name, err := adopted.Name(); name != tapName || err != nil {
		t.Errorf("name %q, %v", name, err)
	}
}

// TestPodGone removes the link: the other end says so, by its name and by a read.
func TestPodGone(t *testing.T) {
	p, link := openPod(t)
	defer p.Close()
	if err := netlink.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Name(); !errors.Is(err, tap.ErrGone) {
		t.Errorf("name: %v, want %v", err, tap.ErrGone)
	}
	if _, err := p.Ports(1)[0].Read(packet.NewBatch(0)); !errors.Is(err, tap.ErrGone) {
		t.Errorf("read: %v, want %v", err, tap.ErrGone)
	}
	if _, err := tap.AdoptPod(p.File()); !errors.Is(err, tap.ErrGone) {
		t.Errorf("adopted: %v, want %v", err, tap.ErrGone)
	}
}

// TestPodRefused adopts what is none.
func TestPodRefused(t *testing.T) {
	d, _ := newTAP(t, 1)
	if _, err := tap.AdoptPod(d.Files()[0]); err == nil {
		t.Error("the node's TAP was adopted as a pod's")
	}
	if _, err := tap.OpenPod(tapName); err == nil {
		t.Error("the node's TAP was opened as a pod's")
	}
}
