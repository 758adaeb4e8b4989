package lab

import (
	"errors"
	"fmt"
	"slices"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
)

// What the veths of the underlay do for the packets that cross them.
const (
	UnderlayVeth = "veth" // as made: all offloads
	UnderlayWire = "wire" // as a network card does: segments and checksums on their way, GRO at the end
)

// wireQueue is the length of the queue in front of a wire's link, packets. Without one the ring of 256 entries that GRO puts into
// a veth drops bursts.
const wireQueue = 10000

// SetUnderlay makes every underlay link UnderlayVeth or UnderlayWire. SetOffloads and Impair spoil a wire.
func (l *Lab) SetUnderlay(kind string) error {
	if kind != UnderlayVeth && kind != UnderlayWire {
		return fmt.Errorf("underlay %s: no such underlay (have: %s, %s)", kind, UnderlayVeth, UnderlayWire)
	}
	wire := kind == UnderlayWire
	if err := l.SetOffloads(!wire); err != nil {
		return err
	}
	for _, e := range l.underlayEnds() {
		err := In(e.namespace, func() error {
			// A switch forwards what it is given: GRO is for those at the ends.
			return errors.Join(setQueue(e.link, wire), setGRO(e.link, wire && e.namespace != underlayNamespace))
		})
		if err != nil {
			return fmt.Errorf("underlay %s: %s: %w", kind, e.namespace, err)
		}
	}
	return nil
}

// setQueue gives a link a pfifo or takes it away.
func setQueue(name string, on bool) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if on {
		// The limit of a pfifo that is given none is the link's (tc-pfifo(8)).
		if err := netlink.LinkSetTxQLen(link, wireQueue); err != nil {
			return fmt.Errorf("set queue length of %s: %w", name, err)
		}
		err = netlink.QdiscReplace(pfifo(link))
	} else {
		err = removeQueue(link)
	}
	if err != nil {
		return fmt.Errorf("set queue of %s: %w", name, err)
	}
	return nil
}

func pfifo(link netlink.Link) netlink.Qdisc {
	return &netlink.GenericQdisc{QdiscType: "pfifo", QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index,
		Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}}
}

func removeQueue(link netlink.Link) error {
	have, err := netlink.QdiscList(link)
	if err != nil {
		return err
	}
	for _, q := range have {
		if q.Type() == "pfifo" {
			return netlink.QdiscDel(q)
		}
	}
	return nil
}

func setGRO(name string, on bool) error {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return fmt.Errorf("ethtool: %w", err)
	}
	defer e.Close()
	if err := e.Change(name, map[string]bool{"rx-gro": on}); err != nil {
		return fmt.Errorf("set GRO of %s to %t: %w", name, on, err)
	}
	return nil
}

// Offloads lists what node 1's underlay link has on of offloads and GRO.
func (l *Lab) Offloads() (on []string, err error) {
	err = In(l.Nodes()[0].Namespace, func() error {
		e, err := ethtool.NewEthtool()
		if err != nil {
			return fmt.Errorf("ethtool: %w", err)
		}
		defer e.Close()
		have, err := e.Features("eth0")
		if err != nil {
			return fmt.Errorf("features of eth0: %w", err)
		}
		for _, f := range slices.Concat(offloads, gro) {
			if have[f] {
				on = append(on, f)
			}
		}
		return nil
	})
	return on, err
}
