package encap

import (
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// slowLoopback queues what loopback carries in a token bucket, so that it stays in the
// senders' buffers, and makes those small.
func slowLoopback(t *testing.T, u *Underlay) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	tbf := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: lo.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       10 << 20, Buffer: 1 << 17, Limit: 1 << 24,
	}
	if err := netlink.QdiscAdd(tbf); err != nil {
		t.Fatalf("tbf on loopback: %v", err)
	}
	for i := range u.senders {
		if err := unix.SetsockoptInt(u.senders[i].fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<16); err != nil {
			t.Fatal(err)
		}
	}
}

// With full socket buffers Write waits a little, then refuses, and every segment is in exactly one
// of Sent and Refused. What it calls sent arrives.
func TestFullSendBuffer(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, lo loopback) {
		for _, fallback := range []bool{false, true} {
			inNamespace(t, 65536)
			a, b, to := lo.pair(t)
			slowLoopback(t, a)
			if fallback {
				refuseSegments(t, a, b)
			}
			out, in := packet.NewBatch(8<<20), packet.NewBatch(1<<21)
			for range 200 {
				outgoing(t, out, flow{1, 2}.tcp(t, pattern(20000)), 1000, to)
				outgoing(t, out, flow{1, 2}.tcp(t, pattern(1000)), 0, to)
			}
			start := time.Now()
			if err := a.Write(out); err != nil {
				t.Fatal(err)
			}
			took := time.Since(start)
			sent, refused := 0, 0
			for i, f := range out.Frames {
				if f.Sent+f.Refused != f.Segments || (f.Sent == 0) != (f.SentBytes == 0) {
					t.Fatalf("frame %d: %d sent (%d bytes) and %d refused of %d", i, f.Sent, f.SentBytes, f.Refused, f.Segments)
				}
				sent += f.Sent
				refused += f.Refused
			}
			if sent == 0 || refused == 0 || took > time.Minute {
				t.Errorf("%d sent, %d refused in %v: not what this test is about", sent, refused, took)
			}
			t.Logf("fallback %v: %d sent, %d refused in %v; %d fallbacks, offloads %v", fallback, sent, refused, took, a.Fallbacks(), a.Offloads())
			receive(t, b, in, sent)
		}
	})
}
