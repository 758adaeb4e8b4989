package control

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/control/listing"
)

// redirect hands what comes in by a link to the way out of another one. Behind an ifb it goes on from there as if nothing had been.
func redirect(link, through netlink.Link) (changed bool, err error) {
	const handle = 0xffff0000 // ffff:, which is the ingress queue's
	index := link.Attrs().Index
	filters, err := listing.Whole(func() ([]netlink.Filter, error) { return netlink.FilterList(link, handle) })
	if err != nil && !errors.Is(err, unix.EINVAL) { // no such queue
		return false, err
	}
	for _, f := range filters {
		if u, ok := f.(*netlink.U32); ok && len(u.Actions) == 1 {
			if m, ok := u.Actions[0].(*netlink.MirredAction); ok && m.Ifindex == through.Attrs().Index {
				return false, nil
			}
		}
	}
	queue := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: handle, Parent: netlink.HANDLE_INGRESS}}
	if err := netlink.QdiscDel(queue); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return false, fmt.Errorf("ingress queue: %w", err)
	}
	if err := netlink.QdiscAdd(queue); err != nil {
		return false, fmt.Errorf("ingress queue: %w", err)
	}
	err = netlink.FilterAdd(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: handle, Priority: 1, Protocol: unix.ETH_P_ALL},
		Actions:     []netlink.Action{netlink.NewMirredAction(through.Attrs().Index)},
	})
	if err != nil {
		return false, fmt.Errorf("redirect to %s: %w", through.Attrs().Name, err)
	}
	return true, nil
}
