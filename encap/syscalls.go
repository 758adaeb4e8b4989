package encap

import (
	"encoding/binary"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr of recvmmsg(2) and sendmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [4]byte
}

// skMemInfoRmemAlloc and skMemInfoDrops are indices into SO_MEMINFO's array
// (include/uapi/linux/sock_diag.h).
const (
	skMemInfoRmemAlloc = 0
	skMemInfoDrops     = 8
	skMemInfoVars      = 9
)

func recvmmsg(fd int, msgs []mmsghdr) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)), unix.MSG_DONTWAIT, 0, 0)
	return int(n), errno
}

func sendmmsg(fd int, msgs []mmsghdr) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)), unix.MSG_DONTWAIT, 0, 0)
	return int(n), errno
}

func sendto(fd int, b []byte, to *sockaddr, length uint32) syscall.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_DONTWAIT, uintptr(unsafe.Pointer(to)), uintptr(length))
	return errno
}

func socketMemory(fd int) (info [skMemInfoVars]uint32, err error) {
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO, uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return info, errno
	}
	return info, nil
}

// A control buffer holds the control messages of one datagram.
const controlLen = 64

// putControl appends a control message with a value of size bytes to buf, and returns the new
// length. It writes the value in native order.
func putControl(buf *[controlLen]byte, used int, level, kind int32, value uint32, size int) int {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&buf[used]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(size))
	data := buf[used+unix.CmsgLen(0):]
	if size == 2 {
		binary.NativeEndian.PutUint16(data, uint16(value))
	} else {
		binary.NativeEndian.PutUint32(data, value)
	}
	return used + unix.CmsgSpace(size)
}

// readControl returns the segment size (UDP_GRO) and the TOS byte or traffic class among the control messages
// of a received datagram; 0 where there is none.
func readControl(buf []byte) (gsoSize int, tos uint8) {
	for len(buf) >= unix.CmsgLen(0) {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&buf[0]))
		size := int(h.Len)
		if size < unix.CmsgLen(1) || size > len(buf) {
			break
		}
		data := buf[unix.CmsgLen(0):size]
		switch {
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			gsoSize = int(int32(binary.NativeEndian.Uint32(data)))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS:
			tos = data[0]
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_TCLASS && len(data) >= 4:
			tos = uint8(binary.NativeEndian.Uint32(data))
		}
		buf = buf[min(unix.CmsgSpace(size-unix.CmsgLen(0)), len(buf)):]
	}
	return gsoSize, tos
}

func rawWritev(fd int, iovecs []unix.Iovec) syscall.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&iovecs[0])), uintptr(len(iovecs)))
	return errno
}
