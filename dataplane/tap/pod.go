package tap

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// A Pod is the TAP that is a pod's interface, in the pod's network namespace: one queue, which one worker reads and all write to. It is
// persistent: the pod keeps it, with its addresses and routes, while no daemon holds the other end. Its methods are safe for concurrent
// use, but for Close.
type Pod struct {
	fd int
}

// OpenPod makes the TAP called name in the namespace of the calling thread, or attaches to it when it is there and nobody holds it. The
// descriptor keeps the namespace that it was opened in, whatever becomes of the link: who does not want to keep a pod's namespace opens it
// elsewhere and moves the link.
func OpenPod(name string) (*Pod, error) {
	fd, _, err := openQueue(podTAP, name)
	if err != nil {
		return nil, err
	}
	p := &Pod{fd: fd}
	if _, err = probeOffloads(fd, name); err == nil {
		err = setPersistent(fd, true)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s %s: %w", podTAP, name, err), p.Close())
	}
	return p, nil
}

// AdoptPod takes over a descriptor that another process has opened. It is the Pod's from then on, unless there is an error: it is of
// another kind, or the TAP is gone.
func AdoptPod(fd int) (*Pod, error) {
	p := &Pod{fd: fd}
	name, flags, err := p.device()
	if err != nil {
		return nil, err
	}
	const ignored = unix.IFF_NO_CARRIER | unix.IFF_PERSIST
	if flags &^= ignored; flags != podTAP.flags() {
		return nil, fmt.Errorf("a queue of %s with flags %#x, not %#x", name, flags, podTAP.flags())
	}
	if size, err := unix.IoctlGetInt(fd, unix.TUNGETVNETHDRSZ); err != nil || int32(size) != packet.VNetLen {
		return nil, fmt.Errorf("virtio_net_hdr of %d bytes, %v", int32(size), err)
	}
	return p, nil
}

// device returns the link's name and the TUN flags. ErrGone: there is none any more.
func (p *Pod) device() (name string, flags uint16, err error) {
	req, err := unix.NewIfreq("")
	if err != nil {
		return "", 0, err
	}
	if err := unix.IoctlIfreq(p.fd, unix.TUNGETIFF, req); err != nil {
		if errors.Is(err, unix.EBADFD) {
			err = ErrGone
		}
		return "", 0, fmt.Errorf("TUNGETIFF: %w", err)
	}
	return req.Name(), req.Uint16(), nil
}

// Name returns the link's name. ErrGone says that the link was removed, or that its namespace has ended.
func (p *Pod) Name() (string, error) {
	name, _, err := p.device()
	return name, err
}

// Netns opens the network namespace that the link is in.
func (p *Pod) Netns() (int, error) {
	ns, err := unix.IoctlRetInt(p.fd, unix.TUNGETDEVNETNS)
	if err != nil {
		return -1, fmt.Errorf("TUNGETDEVNETNS: %w", err)
	}
	unix.CloseOnExec(ns)
	return ns, nil
}

// Ports returns the queue for each of so many workers. Closing them is not for those who use them.
func (p *Pod) Ports(workers int) []Port {
	ports := make([]Port, workers)
	for i := range ports {
		ports[i] = &Queue{fd: p.fd}
	}
	return ports
}

// File returns the descriptor, for another process to adopt. It stays the Pod's.
func (p *Pod) File() int { return p.fd }

// Close lets go of the TAP, which stays.
func (p *Pod) Close() error { return unix.Close(p.fd) }
