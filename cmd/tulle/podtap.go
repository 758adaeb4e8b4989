package main

import (
	"errors"
	"fmt"
	"log/slog"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/control/attach"
	"github.com/tulle-net/tulle/control/cniapi"
	"github.com/tulle-net/tulle/control/ipam"
	"github.com/tulle-net/tulle/dataplane/tables"
	"github.com/tulle-net/tulle/dataplane/tap"
)

// checkKind refuses what a pod's interface of the kind cannot have.
func (p *pods) checkKind(r cniapi.AddRequest) error {
	refused := func(msg string) error { return &cniapi.Error{Code: cniapi.CodeConfig, Msg: msg} }
	switch r.Kind {
	case "", cniapi.KindVeth:
		return nil
	case cniapi.KindTAP:
	default:
		return refused(fmt.Sprintf("attachment %q is not known", r.Kind))
	}
	if d := p.daemon.config.device; d != tap.TAP {
		return refused(fmt.Sprintf("attachment tap: the daemon runs with --device %s, which %s", d, d.Cannot()[0]))
	}
	return nil
}

func hasTAP(l ipam.Lease) bool { return l.Kind == cniapi.KindTAP }

func tapOf(l ipam.Lease) attach.TAP { return attach.TAP(vethOf(l)) }

// tablePod is a lease as the engine knows it.
func tablePod(l ipam.Lease) tables.Pod {
	pod := tables.Pod{MAC: tables.MAC(vethOf(l).MAC), Gateway: tables.MAC(attach.LinkMAC), Gateway4: attach.Gateway4, Gateway6: attach.Gateway6}
	for _, a := range l.Addrs {
		if a.Is4() {
			pod.Addr4 = a
		} else {
			pod.Addr6 = a
		}
	}
	return pod
}

// addInterface makes what the lease is for.
func (p *pods) addInterface(l ipam.Lease) error {
	if hasTAP(l) {
		return p.addTAP(l)
	}
	return vethOf(l).Add()
}

// addTAP makes a pod's TAP and gives the engine its other end.
func (p *pods) addTAP(l ipam.Lease) error {
	var t *tap.Pod
	err := tapOf(l).Add(func(name string) (err error) {
		t, err = tap.OpenPod(name)
		return err
	})
	if err == nil {
		return p.taps.attach(podLink(l.Owner), t, tablePod(l))
	}
	if t != nil {
		err = errors.Join(err, t.Close())
	}
	return err
}

// attachAgain takes the other end of a TAP that is there: of a pod of an earlier run. ErrNetns or ErrDamaged: the pod or its TAP has gone.
func (p *pods) attachAgain(l ipam.Lease) error {
	t := p.taps.take(podLink(l.Owner))
	if t == nil {
		there, err := tapOf(l).Exists()
		if err == nil && !there {
			err = fmt.Errorf("%s of %s: %w", l.Interface, l.Netns, attach.ErrDamaged)
		}
		if err == nil {
			err = tapOf(l).Within(func() (err error) {
				t, err = tap.OpenPod(l.Interface)
				return err
			})
		}
		if err != nil {
			return err
		}
	}
	return p.taps.attach(podLink(l.Owner), t, tablePod(l))
}

// restoreTAPs gives the engine the other ends of the TAPs of an earlier run. What does not work now is tried again with each sweep.
func (p *pods) restoreTAPs() {
	for _, l := range p.store.Leases() {
		if !hasTAP(l) || len(l.Addrs) == 0 {
			continue
		}
		if err := p.attachAgain(l); err != nil {
			slog.Warn("a pod's TAP is not attached yet", "container", l.Container, "interface", l.Interface, "error", err)
		}
	}
	p.taps.settle()
}

// goneTAP says whether a pod's TAP has gone, or the pod that had it, and attaches one that is not attached. Without a reason to believe that, it is there.
func (p *pods) goneTAP(l ipam.Lease) bool {
	attached := p.taps.at(podLink(l.Owner))
	if attached == nil {
		err := p.attachAgain(l)
		if err == nil {
			err = p.daemon.reconciler.AddPod(routed(l))
		}
		gone := errors.Is(err, attach.ErrNetns) || errors.Is(err, attach.ErrDamaged)
		if err != nil && !gone {
			slog.Error("a pod's TAP is not attached", "container", l.Container, "interface", l.Interface, "error", err)
		}
		return gone
	}
	if _, err := attached.Name(); err != nil {
		return errors.Is(err, tap.ErrGone)
	}
	there, err := inNetns(attached.Pod, l.Netns)
	return err == nil && !there
}

// releaseTAP takes a pod's TAP away, from engine and pod. It is no error if either has gone.
func (p *pods) releaseTAP(l ipam.Lease) error {
	t, err := p.taps.detach(podLink(l.Owner))
	if err != nil {
		return err
	}
	if t == nil {
		if !hasTAP(l) || l.Netns == "" {
			return nil
		}
		return tapOf(l).Remove()
	}
	defer t.Close()
	name, err := t.Name()
	if errors.Is(err, tap.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	ns, err := t.Netns()
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	return attach.RemoveFrom(ns, name)
}

// hasInterface says whether what the lease is for has its interface.
func (p *pods) hasInterface(l ipam.Lease) (bool, error) {
	if !hasTAP(l) {
		return attach.Exists(podLink(l.Owner))
	}
	if p.taps.has(podLink(l.Owner)) {
		return true, nil
	}
	there, err := tapOf(l).Exists()
	if errors.Is(err, attach.ErrNetns) {
		return false, nil
	}
	return there, err
}

// checkTAP holds a pod's TAP against what addTAP made.
func (p *pods) checkTAP(l ipam.Lease) error {
	attached := p.taps.at(podLink(l.Owner))
	if attached == nil {
		return fmt.Errorf("%s of %s: no daemon holds its other end: %w", l.Interface, l.Netns, attach.ErrDamaged)
	}
	there, err := inNetns(attached.Pod, l.Netns)
	if err != nil || !there {
		return fmt.Errorf("%s of %s is another link than it was: %w", l.Interface, l.Netns, errors.Join(attach.ErrDamaged, err))
	}
	return tapOf(l).Check()
}
