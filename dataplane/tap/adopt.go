package tap

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// Adopt takes over the TAP called name from descriptors of its queues that another process has opened: all of them, in their order. What
// waits in the queues is read by whoever reads next. The descriptors are the device's from then on, unless there is an error: the
// TAP is gone, is of another kind, or belongs to another network namespace.
func Adopt(name string, queues []int) (*Device, error) {
	if len(queues) == 0 {
		return nil, fmt.Errorf("adopt tap %s: no queues", name)
	}
	d := &Device{Name: name, Kind: TAP}
	for _, fd := range queues {
		if err := checkQueue(fd, name, packet.VNetLen); err != nil {
			return nil, fmt.Errorf("adopt tap %s: %w", name, err)
		}
		d.Queues = append(d.Queues, &Queue{fd: fd})
	}
	if err := d.probeOffloads(); err != nil {
		return nil, err
	}
	return d, nil
}

// AdoptTunnel is Adopt for a device of OpenTunnel, which is as it was when the queues were opened.
func AdoptTunnel(name string, queues []int) (*Tunnel, error) {
	if len(queues) == 0 {
		return nil, fmt.Errorf("adopt tap %s: no queues", name)
	}
	for _, fd := range queues {
		if err := checkQueue(fd, name, packet.TunnelVNetLen); err != nil {
			return nil, fmt.Errorf("adopt tap %s: %w", name, err)
		}
	}
	return &Tunnel{name: name, files: queues}, nil
}

// checkQueue says what keeps a descriptor from being an open queue of the TAP, with a virtio_net_hdr of so many bytes.
func checkQueue(fd int, name string, header int) error {
	req, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, req); err != nil {
		return fmt.Errorf("TUNGETIFF: %w (the device was removed)", err)
	}
	const ignored = unix.IFF_NO_CARRIER | unix.IFF_PERSIST
	if flags := req.Uint16() &^ ignored; req.Name() != name || flags != TAP.flags() {
		return fmt.Errorf("a queue of %s with flags %#x, not %#x", req.Name(), flags, TAP.flags())
	}
	if size, err := unix.IoctlGetInt(fd, unix.TUNGETVNETHDRSZ); err != nil || int(int32(size)) != header {
		return fmt.Errorf("virtio_net_hdr of %d bytes, %v", int32(size), err)
	}
	ns, err := unix.IoctlRetInt(fd, unix.TUNGETDEVNETNS)
	if err != nil {
		return fmt.Errorf("TUNGETDEVNETNS: %w", err)
	}
	defer unix.Close(ns)
	var theirs, own unix.Stat_t
	if err := unix.Fstat(ns, &theirs); err != nil {
		return err
	}
	if err := unix.Stat("/proc/thread-self/ns/net", &own); err != nil {
		return err
	}
	if theirs.Ino != own.Ino || theirs.Dev != own.Dev {
		return errors.New("it is in another network namespace")
	}
	return nil
}

// Files returns the queues' descriptors, for another process to adopt. They stay the device's.
func (d *Device) Files() []int {
	var files []int
	for _, q := range d.Queues {
		files = append(files, q.FD())
	}
	return files
}
