package attach

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/tulle-net/tulle/control/netns"
)

// tapQueueLen is how many frames of a pod's may wait for the engine, super-packets or not. It takes 8 bytes for each.
const tapQueueLen = 4096

// A TAP is what a pod's interface has to be that is a TAP. It has no end on the node, but Link is its name there until the pod has it.
type TAP Veth

// Add lets open make the TAP, by the name it is given, in the node's namespace, and moves it to the pod. So what open holds of it keeps no
// pod's namespace. On an error no link is left.
func (t TAP) Add(open func(name string) error) (err error) {
	v := Veth(t)
	ns, err := openNetns(t.Netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := within(ns, v.checkAbsent); err != nil {
		return err
	}
	if err := Remove(t.Link); err != nil {
		return err
	}
	if err := open(t.Link); err != nil {
		return err
	}
	index := 0
	if index, err = t.move(ns); err != nil {
		return errors.Join(fmt.Errorf("link %s: %w", t.Link, err), Remove(t.Link))
	}
	if err := within(ns, func() error { return t.setUp(index) }); err != nil {
		err = fmt.Errorf("interface %s of %s: %w", t.Interface, t.Netns, err)
		return errors.Join(err, within(ns, func() error { return removeIndex(index) }))
	}
	return nil
}

// move gives the link what the pod is not to choose, and then to the pod. It returns the link's index there.
func (t TAP) move(ns *os.File) (index int, err error) {
	link, err := netlink.LinkByName(t.Link)
	if err != nil {
		return 0, err
	}
	err = errors.Join(netlink.LinkSetHardwareAddr(link, t.MAC), netlink.LinkSetMTU(link, t.MTU), netlink.LinkSetTxQLen(link, tapQueueLen))
	if err == nil {
		err = netlink.LinkSetNsFd(link, int(ns.Fd()))
	}
	if err != nil {
		return 0, err
	}
	err = within(ns, func() error {
		moved, err := netlink.LinkByName(t.Link)
		if err == nil {
			index = moved.Attrs().Index
		}
		return err
	})
	return index, err
}

// setUp runs in the pod's namespace.
func (t TAP) setUp(index int) error {
	link, err := netlink.LinkByIndex(index)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetName(link, t.Interface); err != nil {
		return fmt.Errorf("rename: %w", err)
	}
	return Veth(t).setUpPod()
}

func removeIndex(index int) error {
	link, err := netlink.LinkByIndex(index)
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	return err
}

// Exists reports whether the pod has the TAP, and not something else of its name: a path may name another pod's namespace than it did.
func (t TAP) Exists() (there bool, err error) {
	ns, err := openNetns(t.Netns)
	if err != nil {
		return false, err
	}
	defer ns.Close()
	err = within(ns, func() (err error) {
		_, there, err = t.find()
		return err
	})
	return there, err
}

// find runs in the pod's namespace.
func (t TAP) find() (link netlink.Link, there bool, err error) {
	link, err = netlink.LinkByName(t.Interface)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	return link, link.Type() == tapType && slices.Equal(link.Attrs().HardwareAddr, t.MAC), nil
}

// Within runs f in the pod's namespace.
func (t TAP) Within(f func() error) error {
	ns, err := openNetns(t.Netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	return within(ns, f)
}

// Remove removes the TAP from the pod's namespace, if that is there and the TAP is in it.
func (t TAP) Remove() error {
	ns, err := openNetns(t.Netns)
	if errors.Is(err, ErrNetns) {
		return nil
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	return within(ns, func() error {
		link, there, err := t.find()
		if err != nil || !there {
			return err
		}
		return netlink.LinkDel(link)
	})
}

// RemoveFrom removes a link from a namespace that is open.
func RemoveFrom(ns int, name string) error {
	return netns.Within(ns, func() error { return Remove(name) })
}

// tapType is what the kernel calls a TAP's driver.
const tapType = "tuntap"

// Check holds the TAP against what Add made. What differs is an ErrDamaged.
func (t TAP) Check() error {
	ns, err := openNetns(t.Netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	return within(ns, func() error {
		link, err := netlink.LinkByName(t.Interface)
		if err != nil {
			return fmt.Errorf("%s of %s: %w: %w", t.Interface, t.Netns, ErrDamaged, err)
		}
		if link.Type() != tapType {
			return fmt.Errorf("%s of %s is no TAP: %w", t.Interface, t.Netns, ErrDamaged)
		}
		return Veth(t).checkInterface(link)
	})
}
