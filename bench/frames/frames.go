// Package frames is a generator that knows its packets to the last byte: it writes Ethernet frames to a TAP of
// github.com/songgao/water on one side of a path, reads them from one on the other side, and says of each that arrives whether it is
// what the routers between may have made of it.
//
// A frame is a system call here: it is for what has to be exact and for very many flows, not for rates. Frames are IPv4 and UDP, with
// complete checksums and DF set; their IP identification, which means nothing then (RFC 6864), may change on the way.
package frames

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/songgao/water"
	"github.com/vishvananda/netlink"

	"github.com/tulle-net/tulle/bench"
)

const (
	ethernet, ipv4, udp = 14, 20, 8
	headers             = ethernet + ipv4 + udp
	stamp               = 16 // bytes of payload: trial and number
	firstTTL            = 64
	// MinSize and MaxSize bound a frame, bytes, without FCS. The largest fits pods of any MTU from 576.
	MinSize, MaxSize = headers + stamp, 576 + ethernet
	ports            = 50_000 // source ports, from firstPort
	firstPort        = 10_000
	stride           = 7919 // between the flows of frames that follow each other: a prime, so that all have their turn
	// MaxFlows is how many a Stream may have.
	MaxFlows = 1 << 20
)

// End is one side: a TAP in the namespace that In enters, with an address that the path leads to.
type End struct {
	Name string // of the TAP
	Addr netip.Addr
	In   func(func() error) error
}

// Pair is both sides. Not for more than one goroutine.
type Pair struct {
	near, far *tap
}

// tap is one side's device and what the kernel there calls itself.
type tap struct {
	End
	device *water.Interface
	file   *os.File
	mac    net.HardwareAddr // of the kernel's side
}

// behind is who seems to be behind a TAP.
var behind = net.HardwareAddr{0x02, 't', 'u', 'l', 'l', 'e'}

// Open makes both TAPs. They are gone with Close, or with the process.
func Open(near, far End) (*Pair, error) {
	p := new(Pair)
	for _, side := range []struct {
		End
		to **tap
	}{{near, &p.near}, {far, &p.far}} {
		t := &tap{End: side.End}
		*side.to = t
		if err := t.In(t.open); err != nil {
			return nil, errors.Join(fmt.Errorf("frames: TAP %s: %w", t.Name, err), p.Close())
		}
	}
	return p, nil
}

func (t *tap) open() (err error) {
	if t.device, err = water.New(water.Config{DeviceType: water.TAP, PlatformSpecificParams: water.PlatformSpecificParams{Name: t.Name}}); err != nil {
		return err
	}
	file, ok := t.device.ReadWriteCloser.(*os.File)
	if !ok {
		return fmt.Errorf("the library's device is a %T, not a file", t.device.ReadWriteCloser)
	}
	t.file = file
	link, err := netlink.LinkByName(t.Name)
	if err != nil {
		return err
	}
	t.mac = link.Attrs().HardwareAddr
	to := &net.IPNet{IP: t.Addr.AsSlice(), Mask: net.CIDRMask(32, 32)}
	return errors.Join(netlink.LinkSetTxQLen(link, 10_000), netlink.LinkSetUp(link),
		netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: to, Scope: netlink.SCOPE_LINK}),
		netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: t.Addr.AsSlice(), HardwareAddr: behind, State: netlink.NUD_PERMANENT}))
}

// Close removes both TAPs.
func (p *Pair) Close() (err error) {
	for _, t := range []*tap{p.near, p.far} {
		if t != nil && t.device != nil {
			err = errors.Join(err, t.device.Close())
		}
	}
	return err
}

// Stream says what to send: Count frames of Size bytes, of Flows in turn (not a multiple of 7919), from the near side to the far one.
type Stream struct {
	Trial uint64
	Count int
	Flows int // 1 to MaxFlows
	Size  int // MinSize to MaxSize
	Rate  float64
	Hops  int // routers between the TAPs that lower the TTL
}

func (s Stream) check() error {
	switch {
	case s.Flows < 1 || s.Flows > MaxFlows || s.Flows%stride == 0:
		return fmt.Errorf("frames: %d flows: must be 1 to %d", s.Flows, MaxFlows)
	case s.Size < MinSize || s.Size > MaxSize:
		return fmt.Errorf("frames: %d bytes: must be %d to %d", s.Size, MinSize, MaxSize)
	case s.Count < 1 || s.Rate <= 0 || s.Hops < 0 || s.Hops >= firstTTL:
		return fmt.Errorf("frames: %d at %v/s over %d hops: must be positive, and hops at most %d", s.Count, s.Rate, s.Hops, firstTTL-1)
	}
	return nil
}

// Result is what became of a stream's frames.
type Result struct {
	Sent       int           `json:"sent"`
	Exact      int           `json:"exact"` // arrived as they should
	Changed    int           `json:"changed"`
	Duplicates int           `json:"duplicates"`
	Foreign    int           `json:"foreign"` // not of this trial, such as what the kernel sends by itself
	Elapsed    time.Duration `json:"elapsed"` // of the sending
	FirstBad   []byte        `json:"-"`       // the first changed one; nil if there is none
}

// Lost are those that never arrived, in whatever shape.
func (r Result) Lost() int { return r.Sent - r.Exact - r.Changed }

// Late says that the generator did not send as fast as it was asked to: what it shows is not the path's limit.
func (s Stream) Late(r Result) bool { return float64(r.Sent)/r.Elapsed.Seconds() < s.Rate*0.9 }

// flow is that of frame number n: neighbours in time are none in the tables.
func (s Stream) flow(n int) int {
	return n * stride % s.Flows
}

// build writes frame number n into b, which has s.Size bytes.
func (s Stream) build(b []byte, n int, from, to *tap) {
	copy(b, from.mac)
	copy(b[6:], behind)
	binary.BigEndian.PutUint16(b[12:], 0x0800)
	flow := s.flow(n)
	ip, payload := b[ethernet:], b[headers:]
	copy(ip, []byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, firstTTL, 17, 0, 0})
	binary.BigEndian.PutUint16(ip[2:], uint16(s.Size-ethernet))
	copy(ip[12:], from.Addr.AsSlice())
	copy(ip[16:], to.Addr.AsSlice())
	seal(ip[:ipv4])
	u := ip[ipv4:]
	binary.BigEndian.PutUint16(u, uint16(firstPort+flow%ports))
	binary.BigEndian.PutUint16(u[2:], uint16(5000+flow/ports))
	binary.BigEndian.PutUint16(u[4:], uint16(s.Size-ethernet-ipv4))
	binary.BigEndian.PutUint16(u[6:], 0)
	binary.BigEndian.PutUint64(payload, s.Trial)
	binary.BigEndian.PutUint64(payload[8:], uint64(n))
	for i := stamp; i < len(payload); i++ {
		payload[i] = byte(n*7 + i)
	}
	pseudo := binary.BigEndian.AppendUint16(append(bytes.Clone(ip[12:20]), 0, 17), uint16(len(u)))
	sum := bench.Checksum(append(pseudo, u...))
	if sum == 0 {
		sum = 0xffff // RFC 768: 0 means none
	}
	binary.BigEndian.PutUint16(u[6:], sum)
}

// expected makes of a frame that was sent what should arrive.
func (s Stream) expected(b []byte, to *tap, id []byte) {
	copy(b, behind)
	copy(b[6:], to.mac)
	ip := b[ethernet:]
	copy(ip[4:6], id)
	ip[8] -= byte(s.Hops)
	seal(ip[:ipv4])
}

// seal writes an IPv4 header's checksum.
func seal(header []byte) {
	header[10], header[11] = 0, 0
	binary.BigEndian.PutUint16(header[10:], bench.Checksum(header))
}
