package control

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// LinkCounts are frames as the kernel counts them of a TAP's link: one when it is read or written, so that those that wait are in none
// (Linux 6.18, drivers/net/tun.c).
type LinkCounts struct {
	In, Out uint64 // from the kernel to whoever reads the TAP, and back
	Dropped uint64 // on their way to the reader: the queue was full
}

// CountsOf asks the kernel.
func CountsOf(tap string) (LinkCounts, error) {
	link, err := netlink.LinkByName(tap)
	if err != nil {
		return LinkCounts{}, fmt.Errorf("link %s: %w", tap, err)
	}
	s := link.Attrs().Statistics
	return LinkCounts{In: s.TxPackets, Out: s.RxPackets, Dropped: s.TxDropped}, nil
}
