package lab

import (
	"errors"
	"fmt"

	"github.com/tulle-net/tulle/bench/impair"
)

// Impairment is a bad wire in the place of a node's good one, see Lab.Impair.
type Impairment struct {
	lab      *Lab
	number   int
	shim     *impair.Shim
	offloads bool // were on before
}

// impairLink is the near end of what joins the shim to the bridge, impairPort the bridge's.
func impairLink(number int) string { return fmt.Sprintf("tulle-i%d", number) }
func impairPort(number int) string { return fmt.Sprintf("tulle-j%d", number) }

// Impair puts a bad wire between a node and the underlay: out says what happens to the node's frames, in to those for it. It is
// this process that forwards: when it ends, the node is cut off. The wire goes with the node or the lab at the latest.
//
// Offloads of the links around it are off meanwhile, for the kernel would sum a corrupted frame again, and lose 64 KiB for one
// loss. SetOffloads(true) during it spoils that.
func (l *Lab) Impair(number int, out, in impair.Spec) (i *Impairment, err error) {
	l.op.Lock()
	defer l.op.Unlock()
	n, err := l.Node(number)
	if err != nil {
		return nil, err
	}
	i = &Impairment{lab: l, number: number}
	if err := In(n.Namespace, func() (err error) { i.offloads, err = offloadsOn("eth0"); return err }); err != nil {
		return nil, fmt.Errorf("impair node %s: %w", n.Name, err)
	}
	err = In(underlayNamespace, func() error {
		return addVeth(impairLink(number), underlayNamespace, impairPort(number), l.MTU())
	})
	if err != nil {
		return nil, fmt.Errorf("impair node %s: %w", n.Name, err)
	}
	if err := i.insert(out, in); err != nil {
		return nil, errors.Join(fmt.Errorf("impair node %s: %w", n.Name, err), i.remove())
	}
	l.wires[number] = i
	return i, nil
}

// insert makes the way node, underlayPort, shim, impairLink, impairPort, bridge.
func (i *Impairment) insert(out, in impair.Spec) error {
	if err := i.setOffloads(false); err != nil {
		return err
	}
	return In(underlayNamespace, func() error {
		for _, link := range []string{impairLink(i.number), impairPort(i.number)} {
			if err := setOffloads(link, false); err != nil {
				return err
			}
		}
		if err := leaveBridge(underlayPort(i.number)); err != nil {
			return err
		}
		if err := linkUp(impairLink(i.number)); err != nil {
			return err
		}
		if err := joinBridge(impairPort(i.number), i.bridge()); err != nil {
			return err
		}
		var err error
		i.shim, err = impair.Between(underlayPort(i.number), impairLink(i.number), out, in)
		return err
	})
}

func (i *Impairment) bridge() string { return segmentOf(i.number, i.lab.record().Routed).bridge }

// setOffloads is for both ends of the node's own link.
func (i *Impairment) setOffloads(on bool) error {
	n, err := i.lab.Node(i.number)
	if err != nil {
		return err
	}
	return errors.Join(In(n.Namespace, func() error { return setOffloads("eth0", on) }),
		In(underlayNamespace, func() error { return setOffloads(underlayPort(i.number), on) }))
}

// Stats are those of the node's frames and of the frames for it, since the wire was put in.
func (i *Impairment) Stats() (out, in impair.Stats) { return i.shim.Stats() }

// Stop gives the node its good wire back. What the bad one holds is lost. It does nothing when that has been done.
func (i *Impairment) Stop() error {
	i.lab.op.Lock()
	defer i.lab.op.Unlock()
	if i.lab.wires[i.number] != i {
		return nil
	}
	return i.remove()
}

// remove is Stop for a caller that holds op.
func (i *Impairment) remove() error {
	delete(i.lab.wires, i.number)
	var err error
	if i.shim != nil {
		err = i.shim.Stop()
	}
	return errors.Join(err, In(underlayNamespace, func() error {
		return errors.Join(removeLink(impairLink(i.number)), joinBridge(underlayPort(i.number), i.bridge()))
	}), i.setOffloads(i.offloads))
}
