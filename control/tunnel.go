package control

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
)

// A Tunnel is a TAP that hands what is written to it to a link, as it is: whole super-packets, which are encapsulated already. The
// kernel's routes and firewall have no part in it. The zero value is none.
type Tunnel struct {
	TAP  string
	Link string
}

// Apply makes the TAP what it has to be, whatever it was before. A TAP or a link that is not there is no error: nothing is to be done
// until it comes.
func (t Tunnel) Apply() (changed bool, err error) {
	if t == (Tunnel{}) {
		return false, nil
	}
	tap, err := netlink.LinkByName(t.TAP)
	if err != nil {
		return false, unlessGone(err)
	}
	link, err := netlink.LinkByName(t.Link)
	if err != nil {
		return false, unlessGone(err)
	}
	for _, step := range []func() (bool, error){
		func() (bool, error) { return writeSysctl(conf6+t.TAP+"/disable_ipv6", "1") }, // the kernel has nothing to say there
		func() (bool, error) { return redirect(tap, link) },
		func() (bool, error) { return setUp(tap) },
	} {
		did, err := step()
		changed = changed || did
		if err != nil {
			return changed, fmt.Errorf("link %s: %w", t.TAP, err)
		}
	}
	return changed, nil
}

func setUp(link netlink.Link) (changed bool, err error) {
	if link.Attrs().Flags&net.FlagUp != 0 {
		return false, nil
	}
	return true, netlink.LinkSetUp(link)
}

func unlessGone(err error) error {
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	return err
}
