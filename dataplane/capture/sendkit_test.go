package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addPeers gives the link addresses, and neighbours that need no answer.
func addPeers(t *testing.T, index int) {
	t.Helper()
	link, err := netlink.LinkByIndex(index)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"192.0.2.1/24", "2001:db8::1/64"} {
		address, err := netlink.ParseAddr(a)
		if err == nil {
			address.Flags = unix.IFA_F_NODAD
			err = netlink.AddrAdd(link, address)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range []string{"192.0.2.2", "2001:db8::2"} {
		n := &netlink.Neigh{LinkIndex: index, IP: net.ParseIP(a), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}, State: netlink.NUD_PERMANENT}
		if err := netlink.NeighAdd(n); err != nil {
			t.Fatal(err)
		}
	}
}

// senders are sockets towards the peer's addresses.
type senders map[bool]*net.UDPConn

func newSenders(t *testing.T) senders {
	t.Helper()
	all := senders{}
	for v6, a := range map[bool]string{false: "192.0.2.2", true: "2001:db8::2"} {
		c, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: net.ParseIP(a), Port: tunnelPort})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetWriteBuffer(1 << 20)
		all[v6] = c
	}
	return all
}

func (all senders) send(t *testing.T, s segmented) {
	t.Helper()
	var b []byte
	for _, p := range s.payloads {
		b = append(b, p...)
	}
	oob := make([]byte, unix.CmsgSpace(2))
	h := (*[unix.SizeofCmsghdr]byte)(oob)
	binary.NativeEndian.PutUint64(h[0:], uint64(unix.CmsgLen(2)))
	binary.NativeEndian.PutUint32(h[8:], unix.SOL_UDP)
	binary.NativeEndian.PutUint32(h[12:], unix.UDP_SEGMENT)
	binary.NativeEndian.PutUint16(oob[unix.CmsgLen(0):], uint16(len(s.payloads[0])))
	if _, _, err := all[s.v6].WriteMsgUDP(b, oob, nil); err != nil {
		t.Fatalf("%d datagrams of %d bytes: %v", len(s.payloads), len(s.payloads[0]), err)
	}
}

// cutByKernel returns what the kernel makes of sends on a link that leaves the cutting to it.
func (all senders) cutByKernel(t *testing.T, index int, sends []segmented) (packets [][][]byte) {
	t.Helper()
	cutting(t, false)
	defer cutting(t, true)
	fd := packetSocket(t, index)
	for i, s := range sends {
		all.send(t, s)
		packets = append(packets, drain(t, fd))
		if len(packets[i]) != len(s.payloads) {
			t.Fatalf("send %d: the kernel makes %d packets of %d datagrams", i, len(packets[i]), len(s.payloads))
		}
	}
	return packets
}

func cutting(t *testing.T, on bool) {
	t.Helper()
	e, err := ethtool.NewEthtool()
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if err := e.Change("tulle-a", map[string]bool{"tx-udp-segmentation": on}); err != nil {
		t.Fatal(err)
	}
}

// packetSocket returns one that sees the tunnel's IP packets on a link.
func packetSocket(t *testing.T, index int) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	program := tunnelProgram(Tunnel{Port: tunnelPort}, MaxSnapLen)
	err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20),
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: index}))
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// drain returns what a packet socket has got.
func drain(t *testing.T, fd int) (packets [][]byte) {
	t.Helper()
	b := make([]byte, 1<<17)
	for {
		n, _, err := unix.Recvfrom(fd, b, 0)
		if errors.Is(err, unix.EAGAIN) {
			return packets
		}
		if err != nil {
			t.Fatal(err)
		}
		packets = append(packets, append([]byte{}, b[:n]...))
	}
}

// captured returns the records that a session makes while something runs, and its counts.
func captured(t *testing.T, s *Session, run func()) (records []Record, stats map[int]Statistics) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	from, to := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := s.Run(ctx, to, func() {})
		to.CloseWithError(err)
		ended <- err
	}()
	read := make(chan struct{})
	go func() {
		defer close(read)
		records, stats, _ = readStream(t, from)
	}()
	run()
	time.Sleep(50 * time.Millisecond)
	cancel(errors.New("over"))
	<-read
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	return records, stats
}
