// Package tap owns Linux TAP and TUN devices: their queues as dataplane Ports, and which offloads
// the kernel has. Beside its own TAP it has the devices of two libraries, which can do less (Kind).
//
// It never configures addresses, routes or the link's state: that is the reconciler's. It follows
// Documentation/networking/tuntap.rst and include/uapi/linux/if_tun.h.
package tap

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// Offloads is the set of TUN_F_ flags that the kernel accepted: what a frame read from the
// device may leave undone.
type Offloads uint

var offloadNames = []struct {
	flag Offloads
	name string
}{
	{unix.TUN_F_CSUM, "csum"},
	{unix.TUN_F_TSO4, "tso4"},
	{unix.TUN_F_TSO6, "tso6"},
	{unix.TUN_F_USO4, "uso4"},
	{unix.TUN_F_USO6, "uso6"},
}

// USO is UDP segmentation. A kernel that has it takes super-packets of UDP too (Linux 6.2).
const USO Offloads = unix.TUN_F_USO4 | unix.TUN_F_USO6

// Names returns the offloads' names.
func (o Offloads) Names() []string {
	names := []string{}
	for _, known := range offloadNames {
		if o&known.flag != 0 {
			names = append(names, known.name)
		}
	}
	return names
}

// offloadLadder is what is asked of the kernel, best first: USO exists from Linux 6.2.
var offloadLadder = []Offloads{
	unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_USO4 | unix.TUN_F_USO6,
	unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6,
	unix.TUN_F_CSUM,
	0,
}

// A Port is a queue of a device: a dataplane.Port, used by one goroutine.
type Port interface {
	Read(*packet.Batch) (int, error)
	Write(*packet.Batch) error
	FD() int
	Close() error
}

// A Device is one device with all its queues. It exists while a queue is open, and beyond
// that only after SetPersistent.
type Device struct {
	Name     string
	Kind     Kind
	Queues   []Port
	Offloads Offloads
	counts   func() Counts // nil for a TAP
}

// Open creates the TAP called name, or attaches to it when it exists, with the given number of
// queues. The kernel lets several processes hold queues of one TAP and shares its packets out
// between them: that nobody else holds it is the caller's to make sure. A %d in the name
// stands for a number that the kernel chooses.
func Open(name string, queues int) (*Device, error) {
	if queues < 1 {
		return nil, fmt.Errorf("tap %s: %d queues (needed: 1 or more)", name, queues)
	}
	d := &Device{Name: name, Kind: TAP}
	for range queues {
		fd, chosen, err := openQueue(TAP, d.Name)
		if err != nil {
			d.Close()
			return nil, err
		}
		d.Name = chosen
		d.Queues = append(d.Queues, &Queue{fd: fd})
	}
	if err := d.probeOffloads(); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// openQueue returns a descriptor attached to a device of the kind, and the device's name.
func openQueue(k Kind, name string) (int, string, error) {
	if len(name) >= unix.IFNAMSIZ {
		return -1, "", fmt.Errorf("%s %s: name longer than %d bytes", k, name, unix.IFNAMSIZ-1)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, "", fmt.Errorf("open /dev/net/tun: %w (needs root or CAP_NET_ADMIN, and the kernel's tun driver)", err)
	}
	chosen, err := attach(fd, k, name)
	if err != nil {
		unix.Close(fd)
		return -1, "", fmt.Errorf("create %s %s: %w", k, name, err)
	}
	return fd, chosen, nil
}

func attach(fd int, k Kind, name string) (string, error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return "", err
	}
	req.SetUint16(k.flags())
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		if errors.Is(err, unix.EINVAL) {
			return "", fmt.Errorf("%w: no link can have this name, or a link of this name exists and is no %s: remove it first", err, k.describe())
		}
		return "", err
	}
	if k == Water {
		return req.Name(), nil
	}
	// A persistent device keeps the size that whoever held it before has set.
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, packet.VNetLen); err != nil {
		return "", fmt.Errorf("TUNSETVNETHDRSZ: %w", err)
	}
	return req.Name(), nil
}

// probeOffloads takes the best set of offloads that the kernel accepts. They belong to the
// device, so one queue's descriptor is enough.
func (d *Device) probeOffloads() (err error) {
	d.Offloads, err = probeOffloads(d.Queues[0].FD(), d.Name)
	return err
}

func probeOffloads(fd int, name string) (Offloads, error) {
	var err error
	for _, offloads := range offloadLadder {
		if err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, int(offloads)); err == nil {
			return offloads, nil
		}
	}
	return 0, fmt.Errorf("tap %s: TUNSETOFFLOAD: %w", name, err)
}

// SetPersistent says whether the device outlives its descriptors.
func (d *Device) SetPersistent(on bool) error {
	if err := setPersistent(d.Queues[0].FD(), on); err != nil {
		return fmt.Errorf("%s %s: %w", d.Kind, d.Name, err)
	}
	return nil
}

func setPersistent(fd int, on bool) error {
	value := 0
	if on {
		value = 1
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, value); err != nil {
		return fmt.Errorf("TUNSETPERSIST: %w", err)
	}
	return nil
}

// Joining says which super-packets the device takes whole.
func (d *Device) Joining() packet.Joining {
	return packet.Joining{TCP: d.Kind == TAP, UDP: d.Kind == TAP && d.Offloads&USO != 0}
}

// Counts returns what went through a library's device. It is safe for concurrent use.
func (d *Device) Counts() Counts {
	if d.counts == nil {
		return Counts{}
	}
	return d.counts()
}

// Close closes all queues, and with them removes the device unless it is persistent.
func (d *Device) Close() error {
	var errs []error
	for _, q := range d.Queues {
		errs = append(errs, q.Close())
	}
	return errors.Join(errs...)
}

// String lists the device's name and offloads, or its kind.
func (d *Device) String() string {
	if d.Kind != TAP {
		return fmt.Sprintf("%s (%s)", d.Name, d.Kind)
	}
	return fmt.Sprintf("%s (%d queues, %s)", d.Name, len(d.Queues), strings.Join(d.Offloads.Names(), " "))
}

func rawRead(fd int, b []byte) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return int(n), errno
}

func rawWritev(fd int, iov []unix.Iovec) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)))
	return int(n), errno
}
