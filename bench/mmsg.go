package bench

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// batch is a set of datagrams that one system call sends or receives, each in a slot of its own. The kernel holds pointers into
// it during a call only.
type batch struct {
	slot  int // bytes
	bytes []byte
	iovs  []unix.Iovec
	msgs  []mmsghdr
	names []unix.RawSockaddrInet6 // of senders; nil unless asked for
}

func newBatch(messages, slot int, names bool) *batch {
	b := &batch{slot: slot, bytes: make([]byte, messages*slot), iovs: make([]unix.Iovec, messages), msgs: make([]mmsghdr, messages)}
	if names {
		b.names = make([]unix.RawSockaddrInet6, messages)
	}
	for i := range b.msgs {
		b.iovs[i].Base = &b.bytes[i*slot]
		b.msgs[i].hdr.Iov = &b.iovs[i]
		b.msgs[i].hdr.SetIovlen(1)
		if names {
			b.msgs[i].hdr.Name = (*byte)(unsafe.Pointer(&b.names[i]))
		}
	}
	b.reset()
	return b
}

// reset makes every slot ready to receive into.
func (b *batch) reset() {
	for i := range b.msgs {
		b.size(i, b.slot)
		if b.names != nil {
			b.msgs[i].hdr.Namelen = unix.SizeofSockaddrInet6
		}
	}
}

func (b *batch) size(i, n int)         { b.iovs[i].SetLen(n) }
func (b *batch) payload(i int) []byte  { return b.bytes[i*b.slot : (i+1)*b.slot] }
func (b *batch) received(i int) []byte { return b.bytes[i*b.slot:][:b.msgs[i].len] }

// send gives the first n messages to the kernel and never waits. It returns how many were taken; an error only if that is none.
func (b *batch) send(fd, n int) (int, unix.Errno) {
	r, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.msgs[0])), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(r), 0
}

// receive waits for one message, at most as long as the socket's SO_RCVTIMEO, and takes what else is there.
func (b *batch) receive(fd int) (int, unix.Errno) {
	r, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.msgs[0])), uintptr(len(b.msgs)), unix.MSG_WAITFORONE, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(r), 0
}

func rawSleep(ts *unix.Timespec) {
	unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(ts)), 0, 0)
}

// rawRead and rawWrite are read(2) and write(2) without word to the Go scheduler, for the calling thread has a P to itself (see
// quietRuntime). b must not be empty.
func rawRead(fd int, b []byte) (int, error) { return rawIO(unix.SYS_READ, fd, b) }

func rawWrite(fd int, b []byte) (int, error) { return rawIO(unix.SYS_WRITE, fd, b) }

func rawIO(call uintptr, fd int, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
