package tap

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// A Kind says which code reads and writes a device.
type Kind string

// The kinds of Device.
const (
	TAP   Kind = "tap"   // this package's own: several queues, super-packets in both directions
	TUN   Kind = "tun"   // golang.zx2c4.com/wireguard/tun: IP packets without Ethernet header
	Water Kind = "water" // github.com/songgao/water: a TAP without offloads, one system call a frame
)

// podTAP is the kind of a Pod.
const podTAP Kind = "tap of a pod"

// Kinds lists them, the fastest first.
func Kinds() []Kind { return []Kind{TAP, TUN, Water} }

// Open creates a device of the kind, or attaches to one of this name. Only a TAP has more than one queue.
func (k Kind) Open(name string, queues int) (*Device, error) {
	switch {
	case k == TAP:
		return Open(name, queues)
	case k.SingleQueue() && queues != 1:
		return nil, fmt.Errorf("%s %s: %d queues (possible: 1)", k, name, queues)
	case k == TUN:
		return OpenTUN(name)
	case k == Water:
		return OpenWater(name)
	}
	return nil, fmt.Errorf("device %s: unknown kind (have: %v)", k, Kinds())
}

// SingleQueue reports whether a device of the kind has one queue, for one worker, and ends with it.
func (k Kind) SingleQueue() bool { return k == TUN || k == Water }

// L3 reports whether the device carries IP packets: its link has no MAC and no neighbours.
func (k Kind) L3() bool { return k == TUN }

// Cannot says what a TAP does and a device of this kind does not, in plain sentences without a subject.
func (k Kind) Cannot() []string {
	single := []string{
		"cannot serve several workers: the library has one queue",
		"cannot stay when the daemon ends, nor when it is killed with a holder beside it",
	}
	switch k {
	case TUN:
		return append(single,
			"cannot hand a super-packet over whole: the library cuts it into segments and finishes their checksums",
			"cannot take a super-packet whole: it is cut, and the library joins segments of TCP and UDP again",
			"cannot say which packets of a batch the kernel refused when it took some: the last ones are counted",
			"cannot carry anything but IP: no Ethernet, no ARP")
	case Water:
		return append(single,
			"cannot hand over or take super-packets: every segment is a frame and a system call",
			"cannot leave checksums to anyone: the kernel finishes them on one side, the engine on the other")
	}
	return []string{}
}

// flags of TUNSETIFF.
func (k Kind) flags() uint16 {
	switch k {
	case TUN:
		return unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	case Water:
		return unix.IFF_TAP | unix.IFF_NO_PI
	case podTAP:
		return unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	}
	return unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_MULTI_QUEUE
}

// describe says what a link must be for the kind to attach to it.
func (k Kind) describe() string {
	switch k {
	case TUN:
		return "single-queue TUN"
	case Water:
		return "single-queue TAP without vnet_hdr"
	case podTAP:
		return "single-queue TAP"
	}
	return "multi-queue TAP"
}
