package tap

import (
	"errors"
	"fmt"
	"os"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// A waterPort is the one queue of a TAP of github.com/songgao/water: no vnet_hdr, so the kernel cuts and finishes every packet
// before it hands it over, and takes nothing else.
type waterPort struct {
	library
	device  *water.Interface
	scratch [packet.MaxFrame]byte // a segment to write
}

// OpenWater creates the TAP called name, or attaches to one that nobody holds.
func OpenWater(name string) (*Device, error) {
	// The library loses a descriptor whenever the kernel refuses, so the kernel is asked first.
	fd, _, err := openQueue(Water, name)
	if err != nil {
		return nil, err
	}
	unix.Close(fd)
	config := water.Config{DeviceType: water.TAP}
	config.Name = name
	device, err := water.New(config)
	if err != nil {
		return nil, fmt.Errorf("create water %s: %w", name, err)
	}
	p := &waterPort{device: device}
	file, ok := device.ReadWriteCloser.(*os.File)
	if !ok {
		return nil, errors.Join(fmt.Errorf("create water %s: the library's device is a %T, not a file", name, device.ReadWriteCloser), device.Close())
	}
	if err := attachLibrary(&p.library, file); err != nil {
		return nil, errors.Join(fmt.Errorf("create water %s: %w", name, err), device.Close())
	}
	return &Device{Name: device.Name(), Kind: Water, Queues: []Port{p}, counts: p.counts}, nil
}

// Close closes the descriptor.
func (p *waterPort) Close() error {
	if err := p.device.Close(); err != nil {
		return fmt.Errorf("close water: %w", err)
	}
	return nil
}

// Read appends the frames that wait in the queue, up to 64 or what the arena holds.
func (p *waterPort) Read(b *packet.Batch) (int, error) {
	if err := p.guard(); err != nil {
		return 0, err
	}
	n := 0
	for ; n < maxReads && p.ready(); n++ {
		slot := b.Slot(packet.MaxFrame)
		if slot == nil {
			break
		}
		got, err := p.device.Read(slot[packet.Headroom:])
		if err != nil {
			p.read.Add(uint64(n))
			return n, p.failedRead(err)
		}
		end := packet.Headroom + got
		b.Append(slot, packet.Headroom, end).Truncated = end == len(slot)
		b.Claim(end)
	}
	p.read.Add(uint64(n))
	return n, nil
}

// Write writes each segment of each frame with a system call of its own.
func (p *waterPort) Write(b *packet.Batch) error {
	unsettle(b.Frames)
	for _, f := range b.Frames {
		err := p.write(f)
		p.written.Add(uint64(f.Sent))
		if err != nil {
			refuseRest(b.Frames)
			return err
		}
	}
	return nil
}

func (p *waterPort) write(f *packet.Frame) error {
	for segments := cut(f); ; {
		n := segments.next(p.scratch[:])
		if n == 0 {
			return nil
		}
		if _, err := p.device.Write(p.scratch[:n]); err == nil {
			f.Sent++
			f.SentBytes += n
		} else if err := p.failedWrite(); err != nil {
			return err
		} else {
			f.Refused++
		}
	}
}
