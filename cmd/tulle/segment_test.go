package main

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/scripts/lab"
)

// TestSuperPackets demands that segments keep their boundaries: a pod sends UDP super-packets (UDP_SEGMENT) and each of
// their datagrams arrives by itself, whoever encapsulates.
func TestSuperPackets(t *testing.T) {
	for _, c := range []struct {
		name     string
		kernel   map[int]bool
		from, to int
	}{
		{"tulle to tulle", nil, 1, 2},
		{"tulle to kernel", map[int]bool{2: true}, 1, 2},
		{"kernel to tulle", map[int]bool{2: true}, 2, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1, Kernel: c.kernel})
			for _, offloads := range []bool{true, false} {
				if err := l.SetOffloads(offloads); err != nil {
					t.Fatal(err)
				}
				for _, size := range []int{100, 500, 1400} {
					t.Run(fmt.Sprintf("offloads=%t/size=%d", offloads, size), func(t *testing.T) { sendSegmented(t, between(l, c.from, c.to), size) })
				}
			}
		})
	}
}

// sendSegmented sends 20 full segments and a short one in one call.
func sendSegmented(t *testing.T, p lab.Pair, size int) {
	from, to, err := p.UDP()
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	defer to.Close()
	raw, err := from.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size) })
	if err != nil {
		t.Fatal(err)
	}
	const full = 20
	payload := make([]byte, full*size+size/2)
	for i := range payload {
		payload[i] = byte(i / size)
	}
	if _, err := from.Write(payload); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<16)
	for i := range full + 1 {
		to.SetReadDeadline(time.Now().Add(2 * time.Second))
		n, err := to.Read(buf)
		if err != nil {
			t.Fatalf("datagram %d: %v", i, err)
		}
		want := size
		if i == full {
			want = size / 2
		}
		if n != want || buf[0] != byte(i) || buf[n-1] != byte(i) {
			t.Fatalf("datagram %d: %d bytes starting with %d, want %d with %d", i, n, buf[0], want, i)
		}
	}
}
