package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

const deviceName = "flannel0"

// openTUN makes the device, with the subnet's first address and a route to the whole network.
func openTUN(c config) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq(deviceName)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err == nil {
		err = configureTUN(c)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make %s: %w", deviceName, err)
	}
	return os.NewFile(uintptr(fd), deviceName), nil
}

func configureTUN(c config) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	set := func(what uint, fill func(*unix.Ifreq)) error {
		request, err := unix.NewIfreq(deviceName)
		if err != nil {
			return err
		}
		fill(request)
		return unix.IoctlIfreq(s, what, request)
	}
	address := c.subnet.Addr().As4()
	// Its own messages come from its own address, which the kernel takes for forged unless told otherwise.
	err = os.WriteFile("/proc/sys/net/ipv4/conf/"+deviceName+"/accept_local", []byte("1"), 0o644)
	return errors.Join(err,
		set(unix.SIOCSIFMTU, func(r *unix.Ifreq) { r.SetUint32(uint32(c.mtu)) }),
		set(unix.SIOCSIFADDR, func(r *unix.Ifreq) { r.SetInet4Addr(address[:]) }), // a TUN's is a /32
		set(unix.SIOCSIFFLAGS, func(r *unix.Ifreq) { r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING) }),
		addRoute(c.network))
}

// addRoute sends a network to the device: RTM_NEWROUTE of rtnetlink(7).
func addRoute(network netip.Prefix) error {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	request, err := routeRequest(network)
	if err != nil {
		return err
	}
	if err := unix.Sendto(s, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(s, answer, 0)
	if err != nil {
		return err
	}
	if n < unix.NLMSG_HDRLEN+4 {
		return errors.New("add route: short answer")
	}
	if code := int32(binary.NativeEndian.Uint32(answer[unix.NLMSG_HDRLEN:])); code != 0 {
		return fmt.Errorf("add route %s: %w", network, unix.Errno(-code))
	}
	return nil
}

func routeRequest(network netip.Prefix) ([]byte, error) {
	device, err := net.InterfaceByName(deviceName)
	if err != nil {
		return nil, err
	}
	var body bytes.Buffer
	write := func(v any) { binary.Write(&body, binary.NativeEndian, v) } // to memory, of fixed size: no error
	write(unix.RtMsg{Family: unix.AF_INET, Dst_len: uint8(network.Bits()), Table: unix.RT_TABLE_MAIN,
		Protocol: unix.RTPROT_BOOT, Scope: unix.RT_SCOPE_LINK, Type: unix.RTN_UNICAST})
	write(unix.RtAttr{Len: unix.SizeofRtAttr + 4, Type: unix.RTA_DST})
	write(network.Addr().As4())
	write(unix.RtAttr{Len: unix.SizeofRtAttr + 4, Type: unix.RTA_OIF})
	write(uint32(device.Index))
	var message bytes.Buffer
	header := unix.NlMsghdr{Len: uint32(unix.NLMSG_HDRLEN + body.Len()), Type: unix.RTM_NEWROUTE,
		Flags: unix.NLM_F_REQUEST | unix.NLM_F_ACK | unix.NLM_F_CREATE | unix.NLM_F_EXCL}
	binary.Write(&message, binary.NativeEndian, header)
	return append(message.Bytes(), body.Bytes()...), nil
}
