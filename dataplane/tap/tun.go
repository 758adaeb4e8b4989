package tap

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// MaxSegments is the most segments of a super-packet that a TUN's reader takes; what is longer is cut short. The link must be
// told (gso_max_segs), so that the kernel cuts those itself.
const MaxSegments = 128

const (
	// superRoom is the most that the segments of one read take of a batch's arena, bytes.
	superRoom = packet.MaxFrame + MaxSegments*(packet.MaxHeaders+64)

	// vnetAt is where the library puts the virtio_net_hdr of a packet behind EthernetLen bytes.
	vnetAt = packet.EthernetLen - packet.VNetLen
	// merged marks there a packet that was not written: its payload went into another. No virtio_net_hdr begins so.
	merged = 0xff
)

// A tunPort is the one queue of a TUN of golang.zx2c4.com/wireguard/tun. Frames have an Ethernet header that the link knows nothing
// of: both addresses zero on reading, left out on writing.
//
// The library's buffers have to be as long as its longest packet, so packets are copied out of them and into them; the same
// serve both directions, one after the other.
type tunPort struct {
	library
	device tun.Device
	bufs   [][]byte // each of MaxFrame bytes, the first EthernetLen in front of the packet
	sizes  []int
	staged []stagedPacket // to be written, in bufs
}

// A stagedPacket is a wire segment on its way to the library.
type stagedPacket struct {
	frame  *packet.Frame
	length int // with the Ethernet header
}

// OpenTUN creates the TUN called name, or attaches to one that nobody holds.
func OpenTUN(name string) (*Device, error) {
	fd, _, err := openQueue(TUN, name)
	if err != nil {
		return nil, err
	}
	// The unmonitored device has no goroutines, and no events that somebody would have to read.
	device, name, err := tun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		return nil, fmt.Errorf("create tun %s: %w", name, err) // the descriptor is the library's now, and closed by its finalizer
	}
	if got := device.BatchSize(); got < MaxSegments {
		return nil, errors.Join(fmt.Errorf("create tun %s: the library takes %d packets at once (needed: %d)", name, got, MaxSegments), device.Close())
	}
	p := &tunPort{device: device, sizes: make([]int, MaxSegments), staged: make([]stagedPacket, 0, MaxSegments)}
	for range MaxSegments {
		p.bufs = append(p.bufs, make([]byte, packet.MaxFrame))
	}
	if err := attachLibrary(&p.library, device.File()); err != nil {
		return nil, errors.Join(fmt.Errorf("create tun %s: %w", name, err), device.Close())
	}
	return &Device{Name: name, Kind: TUN, Queues: []Port{p}, counts: p.counts}, nil
}

// Close closes the descriptor.
func (p *tunPort) Close() error {
	if err := p.device.Close(); err != nil {
		return fmt.Errorf("close tun: %w", err)
	}
	return nil
}

// Read appends the packets that wait in the queue, as segments, up to 64 and the rest of a super-packet or what the arena has
// room for. The batch's arena must have room for a super-packet's segments.
func (p *tunPort) Read(b *packet.Batch) (int, error) {
	if err := p.guard(); err != nil {
		return 0, err
	}
	n := 0
	for n < maxReads && p.ready() {
		if b.Slot(superRoom) == nil {
			if len(b.Frames) == 0 {
				return 0, fmt.Errorf("read tun: the batch has no room for the segments of a super-packet (%d bytes)", superRoom)
			}
			break
		}
		got, err := p.device.Read(p.bufs, p.sizes, packet.EthernetLen)
		for i := range got {
			p.append(b, p.bufs[i][:packet.EthernetLen+p.sizes[i]])
		}
		n += got
		if err != nil {
			return n, p.failedRead(err)
		}
		p.read.Add(1)
	}
	return n, nil
}

// append copies a packet with EthernetLen bytes in front into the batch.
func (p *tunPort) append(b *packet.Batch, data []byte) {
	ip := data[packet.EthernetLen:]
	clear(data[:packet.EthernetLen])
	if len(ip) > 0 {
		switch ip[0] >> 4 {
		case 4:
			binary.BigEndian.PutUint16(data[12:], packet.EtherTypeIPv4)
		case 6:
			binary.BigEndian.PutUint16(data[12:], packet.EtherTypeIPv6)
		}
	}
	restoreUDPChecksum(data)
	slot := b.Slot(len(data))
	end := packet.Headroom + copy(slot[packet.Headroom:], data)
	b.Claim(end)
	b.Append(slot, packet.Headroom, end)
}

// Write hands every segment to the library, which joins those of a TCP or UDP flow again before it writes them.
func (p *tunPort) Write(b *packet.Batch) error {
	unsettle(b.Frames)
	for _, f := range b.Frames {
		if err := p.stage(f); err != nil {
			refuseRest(b.Frames)
			return err
		}
	}
	return p.flush()
}

// stage puts the segments of a frame into the buffers, and writes these whenever they are full.
func (p *tunPort) stage(f *packet.Frame) error {
	for segments := cut(f); ; {
		if len(p.staged) == len(p.bufs) {
			if err := p.flush(); err != nil {
				return err
			}
		}
		i := len(p.staged)
		n := segments.next(p.bufs[i])
		if n == 0 {
			return nil
		}
		p.bufs[i] = p.bufs[i][:n]
		p.bufs[i][vnetAt] = merged
		p.staged = append(p.staged, stagedPacket{f, n})
	}
}

// flush writes what is staged and settles it.
func (p *tunPort) flush() error {
	if len(p.staged) == 0 {
		return nil
	}
	bytes, err := p.device.Write(p.bufs[:len(p.staged)], packet.EthernetLen)
	p.settle(p.refused(bytes, err))
	for i := range p.staged {
		p.bufs[i] = p.bufs[i][:packet.MaxFrame] // the library exchanges buffers
	}
	p.staged = p.staged[:0]
	if err != nil {
		return p.failedWrite()
	}
	return nil
}

// refused returns how many of the staged packets did not get out, and counts the writes of those that did. The library tells
// how many bytes it wrote, with the virtio_net_hdrs, but not of which packets: the first ones, unless the kernel changed its mind.
func (p *tunPort) refused(bytes int, err error) (refused int) {
	if err != nil && bytes == 0 {
		return len(p.staged)
	}
	for i := range p.staged {
		buf := p.bufs[i]
		if buf[vnetAt] == merged {
			continue
		}
		if size := len(buf) - vnetAt; err == nil || bytes >= size {
			bytes -= size
			p.written.Add(1)
			continue
		}
		vnet := packet.DecodeVNet(buf[vnetAt:])
		refused++
		if vnet.GSOType != packet.GSONone {
			payload, size := len(buf)-packet.EthernetLen-int(vnet.HdrLen), int(vnet.GSOSize)
			refused += (payload+size-1)/size - 1
		}
	}
	return refused
}

// settle notes on the staged packets' frames that the last ones were refused and the others left.
func (p *tunPort) settle(refused int) {
	for i, s := range p.staged {
		if i >= len(p.staged)-refused {
			s.frame.Refused++
			continue
		}
		s.frame.Sent++
		s.frame.SentBytes += s.length
	}
}
