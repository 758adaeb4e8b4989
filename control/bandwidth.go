package control

import (
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/control/listing"
)

// Limits bound what a pod gets and what it sends, at one end of its link. The zero value bounds nothing.
type Limits struct {
	In, Out Limit
	// Own is the pod's end, if that is the one: of a link that has none on the node.
	Own *OwnEnd
}

// An OwnEnd is a link in a pod's network namespace.
type OwnEnd struct {
	Name, Link string                   // there, and what it would be called on the node
	Within     func(func() error) error // runs something in the pod's namespace, and does nothing if that has gone
	Failed     func(error)              // is told why the limits cannot be kept: the pod may have done that, and the node is none the worse
}

// A Limit bounds what goes one way through a pod's link. Its zero value bounds nothing.
type Limit struct {
	Rate  uint64 // bytes/s
	Burst uint64 // bytes that may go at once; a packet at least
}

// limitQueue is how long a packet may wait for its turn: what would wait longer is dropped.
const limitQueue = 25e3 // microseconds

// ifbName is the device that what comes in by a pod's link passes, if it is limited: a queue can only be on the way out of a device
// (tc-tbf(8), Linux 6.18 drivers/net/ifb.c).
func ifbName(link string) string { return "tifb" + strings.TrimPrefix(link, "tulle") }

// applyLimits makes the limits of the pods' links what they have to be.
func (k Kernel) applyLimits(netlink.Link) (changed bool, err error) {
	for _, p := range k.Pods {
		made, err := p.applyLimits()
		changed = changed || made
		if err != nil && p.Own != nil {
			p.Own.Failed(err)
		} else if err != nil {
			return changed, fmt.Errorf("limits of pod %v: %w", p.Addrs, err)
		}
	}
	return changed, nil
}

func (p Pod) applyLimits() (changed bool, err error) {
	if p.In == (Limit{}) && p.Out == (Limit{}) {
		return false, nil
	}
	if p.Own == nil {
		return applyLimits(p.Link, ifbName(p.Link), p.In, p.Out)
	}
	err = p.Own.Within(func() (err error) {
		changed, err = applyLimits(p.Own.Name, ifbName(p.Own.Link), p.Out, p.In)
		return err
	})
	return changed, err
}

// applyLimits bounds what leaves by a link, and what comes in by it. A link that is not there has no limits.
func applyLimits(name, ifbName string, leaves, comes Limit) (changed bool, err error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	left, err := leaves.apply(link)
	if err != nil || comes == (Limit{}) {
		return left, err
	}
	ifb, made, err := applyIFB(ifbName, link.Attrs().MTU)
	if err != nil {
		return left, err
	}
	came, err := comes.apply(ifb)
	if err != nil {
		return left, err
	}
	redirected, err := redirect(link, ifb)
	return left || made || came || redirected, err
}

// apply makes the root queue of a link a token bucket filter.
func (l Limit) apply(link netlink.Link) (changed bool, err error) {
	if l == (Limit{}) {
		return false, nil
	}
	all, err := listing.Whole(func() ([]netlink.Qdisc, error) { return netlink.QdiscList(link) })
	if err != nil {
		return false, err
	}
	want := l.qdisc(link)
	for _, q := range all {
		if have, ok := q.(*netlink.Tbf); ok && have.Parent == netlink.HANDLE_ROOT && have.Rate == want.Rate && have.Limit == want.Limit && have.Buffer == want.Buffer {
			return false, nil
		}
	}
	if err := netlink.QdiscReplace(want); err != nil {
		return false, fmt.Errorf("token bucket filter of %s: %w", link.Attrs().Name, err)
	}
	return true, nil
}

func (l Limit) qdisc(link netlink.Link) *netlink.Tbf {
	fill := float64(l.Burst) / float64(l.Rate) * netlink.TIME_UNITS_PER_SEC * netlink.TickInUsec()
	return &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       l.Rate,
		Buffer:     uint32(min(fill, math.MaxUint32)),
		Limit:      uint32(min(float64(l.Burst)+float64(l.Rate)*limitQueue/netlink.TIME_UNITS_PER_SEC, math.MaxUint32)),
	}
}

// applyIFB makes the device that what comes in by a limited link passes.
func applyIFB(name string, mtu int) (ifb netlink.Link, changed bool, err error) {
	ifb, err = netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = name, mtu
		if err := netlink.LinkAdd(&netlink.Ifb{LinkAttrs: attrs}); err != nil {
			return nil, false, fmt.Errorf("make link %s: %w", name, err)
		}
		changed = true
		ifb, err = netlink.LinkByName(name)
	}
	if err != nil {
		return nil, changed, err
	}
	up, err := setUp(ifb)
	return ifb, changed || up, err
}

// removeLimits removes what does not go with the pod's link.
func (p Pod) removeLimits() error {
	if p.Own != nil {
		return p.Own.Within(func() error { return removeIFB(ifbName(p.Own.Link)) })
	}
	if p.Link == "" {
		return nil
	}
	return removeIFB(ifbName(p.Link))
}

func removeIFB(name string) error {
	ifb, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkDel(ifb)
	}
	if err == nil || errors.As(err, new(netlink.LinkNotFoundError)) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return fmt.Errorf("remove link %s: %w", name, err)
}
