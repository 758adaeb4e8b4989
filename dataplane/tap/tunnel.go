package tap

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// What TUNSETOFFLOAD calls super-packets inside UDP tunnels, without and with an outer checksum (include/uapi/linux/if_tun.h, Linux 6.17).
const (
	tunnelGSO     = 0x80
	tunnelGSOCsum = 0x100
)

// A Tunnel is a TAP that takes super-packets which are encapsulated already: the kernel, or a device behind it, cuts the inner packet
// and repeats the outer headers (tunnel GSO). It is for writing; what the kernel sends by it is nobody's. Its methods are for one
// goroutine, beside those who write to Files.
type Tunnel struct {
	name  string
	files []int
}

// OpenTunnel makes the device, or attaches to it when a daemon that is being replaced has it, with so many queues. It is gone with the
// last descriptor. A kernel before Linux 6.17 refuses.
func OpenTunnel(name string, queues int) (*Tunnel, error) {
	t := &Tunnel{name: name}
	for range queues {
		fd, _, err := openQueue(TAP, name)
		if err == nil {
			t.files = append(t.files, fd)
			err = prepareTunnel(fd)
		}
		if err != nil {
			return nil, errors.Join(err, t.Close())
		}
	}
	return t, nil
}

func prepareTunnel(fd int) error {
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, packet.TunnelVNetLen); err != nil {
		return fmt.Errorf("TUNSETVNETHDRSZ %d: %w", packet.TunnelVNetLen, err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, int(offloadLadder[0]|tunnelGSO|tunnelGSOCsum)); err != nil {
		return fmt.Errorf("the kernel has no GSO for tunnels on a TAP (Linux 6.17): %w", err)
	}
	return nil
}

// Files are the queues' descriptors. Their numbers stay the same when the device is made again.
func (t *Tunnel) Files() []int { return t.files }

// Restore makes the device again if somebody removed it, behind the same descriptors, and reports whether it did.
func (t *Tunnel) Restore() (restored bool, err error) {
	req, err := unix.NewIfreq("")
	if err != nil {
		return false, err
	}
	if unix.IoctlIfreq(t.files[0], unix.TUNGETIFF, req) == nil {
		return false, nil
	}
	again, err := OpenTunnel(t.name, len(t.files))
	if err != nil {
		return false, err
	}
	for i, fd := range again.files {
		if err := unix.Dup3(fd, t.files[i], unix.O_CLOEXEC); err != nil {
			return false, errors.Join(fmt.Errorf("tap %s: %w", t.name, err), again.Close())
		}
	}
	return true, again.Close()
}

// Close closes the queues.
func (t *Tunnel) Close() error {
	var errs []error
	for _, fd := range t.files {
		errs = append(errs, unix.Close(fd))
	}
	return errors.Join(errs...)
}
