package lab

import (
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
)

// queueOf is the kind of a link's root qdisc and the length of its queue.
func queueOf(t *testing.T, e end) (kind string, length int) {
	t.Helper()
	err := In(e.namespace, func() error {
		link, err := netlink.LinkByName(e.link)
		if err != nil {
			return err
		}
		queues, err := netlink.QdiscList(link)
		for _, q := range queues {
			kind = q.Type()
		}
		length = link.Attrs().TxQLen
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return kind, length
}

func groOf(t *testing.T, e end) (on bool) {
	t.Helper()
	err := In(e.namespace, func() error {
		tool, err := ethtool.NewEthtool()
		if err != nil {
			return err
		}
		defer tool.Close()
		features, err := tool.Features(e.link)
		on = features["rx-gro"]
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return on
}

// A wire has a queue at each end, GRO at the nodes', no other offload, and becomes a veth again.
func TestSetUnderlay(t *testing.T) {
	l := up(t, Config{Nodes: 2, Pods: 1, Kernel: map[int]bool{1: true, 2: true}})
	before, err := l.Offloads()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for _, kind := range []string{UnderlayWire, UnderlayWire, UnderlayVeth, UnderlayVeth} {
			if err := l.SetUnderlay(kind); err != nil {
				t.Fatal(err)
			}
			on, err := l.Offloads()
			if err != nil {
				t.Fatal(err)
			}
			if want := map[string][]string{UnderlayWire: {"rx-gro"}, UnderlayVeth: before}[kind]; !slices.Equal(on, want) {
				t.Errorf("%s: on is %v, want %v", kind, on, want)
			}
			for _, e := range l.underlayEnds() {
				if on := groOf(t, e); on != (kind == UnderlayWire && e.link == "eth0") {
					t.Errorf("%s: GRO of %s is %t", kind, e.link, on)
				}
				queue, length := queueOf(t, e)
				if wire := kind == UnderlayWire; (queue == "pfifo") != wire || wire && length != wireQueue {
					t.Errorf("%s: %s has the queue %s of %d", kind, e.link, queue, length)
				}
			}
		}
	}
	if err := l.SetUnderlay("tin"); err == nil {
		t.Error("an underlay of tin, and no error")
	}
}

// Direct namespaces reach each other, leave no names, and are gone when they are closed.
func TestDirect(t *testing.T) {
	names, _ := filepath.Glob(filepath.Join(netnsDir, "*"))
	d, err := NewDirect(1450)
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range []string{FamilyV4, FamilyV6} {
		var to *net.UDPConn
		err := d.In(1, func() (err error) {
			to, err = net.ListenUDP("udp", &net.UDPAddr{IP: DirectAddr(1, family).AsSlice()})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer to.Close()
		err = d.In(0, func() error {
			from, err := net.DialUDP("udp", nil, to.LocalAddr().(*net.UDPAddr))
			if err != nil {
				return err
			}
			defer from.Close()
			_, err = from.Write([]byte("hello"))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		to.SetReadDeadline(time.Now().Add(5 * time.Second))
		b := make([]byte, 10)
		if n, from, err := to.ReadFromUDPAddrPort(b); err != nil || string(b[:n]) != "hello" || from.Addr().Unmap() != DirectAddr(0, family) {
			t.Errorf("%s: %q from %v, %v", family, b[:n], from, err)
		}
	}
	if now, _ := filepath.Glob(filepath.Join(netnsDir, "*")); !slices.Equal(now, names) {
		t.Errorf("namespaces with names: %v, before %v", now, names)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.In(0, func() error { return nil }); err == nil {
		t.Error("closed, and can be entered")
	}
	if err := d.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
}
