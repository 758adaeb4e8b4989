package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/control/attach"
	"github.com/tulle-net/tulle/control/cniapi"
	"github.com/tulle-net/tulle/control/ipam"
)

// podSweep is the time between two looks for pods whose links have gone.
const podSweep = 10 * time.Second

// pods are what the CNI plugin asked for: their addresses, links and routes. Its methods are safe for concurrent use. Different
// interfaces are worked on at the same time; GC and the sweep work alone.
//
// Of each pod the lease is made first and freed last, so that whatever is left after a crash has a lease, which DEL, GC or the
// sweep finds.
type pods struct {
	daemon *daemon
	store  *ipam.Store
	taps   *podTAPs

	alone sync.RWMutex // held by who changes pods, for writing by who must be alone
	busy  keyedMutex
}

func openPods(d *daemon) (*pods, error) {
	store, err := ipam.Open(d.config.stateDir)
	if err != nil {
		return nil, err
	}
	return &pods{daemon: d, store: store, taps: d.forwarder.pods}, nil
}

// known lists the pods of an earlier run, which have their links still.
func (p *pods) known() (all []control.Pod) {
	for _, l := range p.store.Leases() {
		if !hasTAP(l) || p.taps.has(podLink(l.Owner)) {
			all = append(all, routed(l))
		}
	}
	return all
}

// routed is a lease as the kernel's routes and netfilter know it.
func routed(l ipam.Lease) control.Pod {
	pod := control.Pod{Link: podLink(l.Owner), Addrs: l.Addrs, Ports: mapped(l), Limits: limits(l)}
	if len(l.Addrs) > 0 {
		pod.MAC = vethOf(l).MAC
	}
	if hasTAP(l) {
		pod.Link = ""
	}
	return pod
}

// podLink depends on nothing but the owner: DEL finds the link when all else is lost.
func podLink(o ipam.Owner) string {
	return attach.LinkName(o.Network + "/" + o.Container + "/" + o.Interface)
}

// pools are what pods get addresses of: the subnets that are confirmed.
func (p *pods) pools() (pools []ipam.Pool, mtu int) {
	s, _, _ := p.daemon.network.report()
	for _, subnet := range []netip.Prefix{s.Self.Subnet, s.Self.IPv6Subnet} {
		if subnet.IsValid() {
			pools = append(pools, ipam.Pool{Subnet: subnet, Reserved: control.PodReserved(subnet)})
		}
	}
	return pools, s.MTU
}

// add gives a container an interface. When it returns, the pod's addresses and routes are there, in kernel and engine.
func (p *pods) add(r cniapi.AddRequest) (cniapi.AddResult, error) {
	owner, err := ownerOf(r.Attachment)
	if err != nil {
		return cniapi.AddResult{}, err
	}
	if err := cmp.Or(checkMAC(r.MAC), p.checkKind(r)); err != nil {
		return cniapi.AddResult{}, err
	}
	if err := p.ready(); err != nil {
		return cniapi.AddResult{}, err
	}
	defer p.begin(owner)()
	pools, mtu := p.pools()
	ports, err := p.portsOf(r.Ports, pools)
	if err == nil {
		err = checkBandwidth(r.Bandwidth, mtu)
	}
	if err != nil {
		return cniapi.AddResult{}, err
	}
	lease, err := p.lease(ipam.Lease{Owner: owner, Kind: r.Kind, Netns: r.Netns, Addrs: r.Addrs, Ports: ports, MAC: r.MAC, MTU: mtu, Bandwidth: ipam.Bandwidth(r.Bandwidth)}, pools)
	if err != nil {
		return cniapi.AddResult{}, coded(err)
	}
	err = p.daemon.reconciler.PinPod(routed(lease))
	if err == nil {
		err = p.addInterface(lease)
	}
	if err == nil {
		err = p.daemon.reconciler.AddPod(routed(lease))
	}
	if err != nil {
		return cniapi.AddResult{}, coded(errors.Join(err, p.release(lease)))
	}
	slog.Info("pod added", "container", owner.Container, "interface", owner.Interface, "network", owner.Network, "addresses", lease.Addrs, "link", podLink(owner), "kind", lease.Kind)
	return resultOf(lease), nil
}

// lease gives the owner addresses. Those of an attachment that went wrong before it had a link are given back first.
func (p *pods) lease(want ipam.Lease, pools []ipam.Pool) (ipam.Lease, error) {
	lease, err := p.store.Allocate(want, pools)
	if !errors.Is(err, ipam.ErrHeld) {
		return lease, err
	}
	there, lerr := p.hasInterface(lease)
	if lerr != nil || there {
		return lease, errors.Join(lerr, err)
	}
	if err := p.release(lease); err != nil {
		return lease, err
	}
	return p.store.Allocate(want, pools)
}

func vethOf(l ipam.Lease) attach.Veth {
	mac, err := net.ParseMAC(l.MAC)
	if err != nil { // none was asked for
		mac = attach.MAC(l.Addrs[0])
	}
	return attach.Veth{Link: podLink(l.Owner), Netns: l.Netns, Interface: l.Interface, MAC: mac, MTU: l.MTU, Addrs: l.Addrs}
}

func resultOf(l ipam.Lease) cniapi.AddResult {
	v := vethOf(l)
	r := cniapi.AddResult{MAC: v.MAC.String(), MTU: v.MTU}
	if !hasTAP(l) {
		r.Link, r.LinkMAC = v.Link, attach.LinkMAC.String()
	}
	for _, a := range v.Addrs {
		r.IPs = append(r.IPs, cniapi.IP{Address: netip.PrefixFrom(a, a.BitLen()), Gateway: attach.Gateway(a)})
	}
	return r
}

// release undoes everything, the lease last. It is no error if something is gone.
func (p *pods) release(l ipam.Lease) error {
	if err := attach.Remove(podLink(l.Owner)); err != nil {
		return err
	}
	if err := p.daemon.reconciler.RemovePod(routed(l)); err != nil {
		return err
	}
	if err := p.releaseTAP(l); err != nil {
		return err
	}
	return p.store.Free(l.Owner)
}

// del takes a container's interface away. It succeeds however much of it is gone.
func (p *pods) del(r cniapi.Attachment) (cniapi.Empty, error) {
	owner, err := ownerOf(r)
	if err != nil {
		return cniapi.Empty{}, err
	}
	defer p.begin(owner)()
	lease, had := p.store.Lease(owner)
	lease.Owner = owner
	if err := p.release(lease); err != nil {
		return cniapi.Empty{}, err
	}
	if had {
		slog.Info("pod deleted", "container", owner.Container, "interface", owner.Interface, "network", owner.Network, "addresses", lease.Addrs)
	}
	return cniapi.Empty{}, nil
}

// check holds a container's interface against what add made.
func (p *pods) check(r cniapi.CheckRequest) (cniapi.Empty, error) {
	owner, err := ownerOf(r.Attachment)
	if err != nil {
		return cniapi.Empty{}, err
	}
	if err := p.ready(); err != nil {
		return cniapi.Empty{}, err
	}
	defer p.begin(owner)()
	lease, ok := p.store.Lease(owner)
	if !ok {
		return cniapi.Empty{}, &cniapi.Error{Code: cniapi.CodeUnknownContainer, Msg: fmt.Sprintf("%s: no addresses are leased to it", owner)}
	}
	if !sameAddrs(lease.Addrs, r.Addrs) {
		return cniapi.Empty{}, &cniapi.Error{Code: cniapi.CodeDamaged, Msg: fmt.Sprintf("%s has addresses %v, prevResult says %v", owner, lease.Addrs, r.Addrs)}
	}
	lease.Netns = r.Netns
	if hasTAP(lease) {
		return cniapi.Empty{}, coded(p.checkTAP(lease))
	}
	return cniapi.Empty{}, coded(vethOf(lease).Check())
}

// sameAddrs compares without order.
func sameAddrs(a, b []netip.Addr) bool {
	have := map[netip.Addr]bool{}
	for _, addr := range a {
		have[addr] = true
	}
	for _, addr := range b {
		if !have[addr] {
			return false
		}
	}
	return len(a) == len(b)
}

// gc deletes every attachment of a network that is not named as valid.
func (p *pods) gc(r cniapi.GCRequest) (cniapi.Empty, error) {
	valid := map[ipam.Owner]bool{}
	for _, a := range r.Valid {
		valid[ipam.Owner{Network: r.Network, Container: a.ContainerID, Interface: a.Interface}] = true
	}
	return cniapi.Empty{}, p.collect("not among the valid attachments", func(l ipam.Lease) bool {
		return l.Network == r.Network && !valid[l.Owner]
	})
}

// collect releases the leases that are garbage, alone.
func (p *pods) collect(reason string, garbage func(ipam.Lease) bool) error {
	p.alone.Lock()
	defer p.alone.Unlock()
	var errs []error
	for _, l := range p.store.Leases() {
		if !garbage(l) {
			continue
		}
		slog.Info("pod collected", "reason", reason, "container", l.Container, "interface", l.Interface, "network", l.Network, "addresses", l.Addrs)
		errs = append(errs, p.release(l))
	}
	return errors.Join(errs...)
}

// run frees what belongs to pods that ended without DEL: with a pod's namespace its link goes.
func (p *pods) run(ctx context.Context) error {
	for {
		if err := p.sweep(); err != nil {
			slog.Error("pods without links not collected", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(podSweep):
		}
	}
}

func (p *pods) sweep() error {
	links := sync.OnceValues(attach.Links) // looked at by who works alone: none is in the making
	var unknown error
	err := p.collect("its link has gone", func(l ipam.Lease) bool {
		if hasTAP(l) {
			return p.goneTAP(l)
		}
		var names map[string]bool
		names, unknown = links()
		return unknown == nil && !names[podLink(l.Owner)]
	})
	return errors.Join(err, unknown)
}

// status says whether add would work.
func (p *pods) status(cniapi.Empty) (cniapi.Empty, error) { return cniapi.Empty{}, p.ready() }

// pool says what another plugin can give a container addresses of. One that is there already gets none: another plugin's ADD that fails is
// undone, and with it what the container has.
func (p *pods) pool(r cniapi.Attachment) (cniapi.Pool, error) {
	owner, err := ownerOf(r)
	if err != nil {
		return cniapi.Pool{}, err
	}
	if err := p.ready(); err != nil {
		return cniapi.Pool{}, err
	}
	defer p.begin(owner)()
	if lease, leased := p.store.Lease(owner); leased {
		there, err := p.hasInterface(lease)
		if err != nil || there {
			return cniapi.Pool{}, coded(cmp.Or(err, attach.ErrExists))
		}
	}
	pools, mtu := p.pools()
	answer := cniapi.Pool{MTU: mtu}
	for _, pool := range pools {
		gateway, engine := control.GatewayAddr(pool.Subnet), control.EngineAddr(pool.Subnet)
		answer.Ranges = append(answer.Ranges, cniapi.Range{Subnet: pool.Subnet, First: gateway.Next(), Last: engine.Prev(), Gateway: gateway})
	}
	return answer, nil
}

func (p *pods) ready() error {
	if err := p.daemon.ready(); err != nil {
		return &cniapi.Error{Code: cniapi.CodeTryAgain, Msg: fmt.Sprintf("node is not ready: %s", err)}
	}
	return nil
}

// begin waits until nobody else works on the interface, and returns what ends that.
func (p *pods) begin(o ipam.Owner) (end func()) {
	p.alone.RLock()
	unlock := p.busy.lock(o)
	return func() {
		unlock()
		p.alone.RUnlock()
	}
}

// A keyedMutex is a mutex for each owner. Its zero value is ready.
type keyedMutex struct {
	mu   sync.Mutex
	held map[ipam.Owner]chan struct{} // closed when it is free
}

func (k *keyedMutex) lock(o ipam.Owner) (unlock func()) {
	k.mu.Lock()
	for k.held[o] != nil {
		free := k.held[o]
		k.mu.Unlock()
		<-free
		k.mu.Lock()
	}
	if k.held == nil {
		k.held = map[ipam.Owner]chan struct{}{}
	}
	free := make(chan struct{})
	k.held[o] = free
	k.mu.Unlock()
	return func() {
		k.mu.Lock()
		delete(k.held, o)
		k.mu.Unlock()
		close(free)
	}
}

// What names may be: those of the CNI specification, and the kernel's rules for links.
var (
	nameRule = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,252}$`)
	linkRule = regexp.MustCompile(`^[^/:\s]{1,15}$`)
)

// ownerOf checks every field of a request that ends in a name or a path.
func ownerOf(a cniapi.Attachment) (o ipam.Owner, err error) {
	refused := func(what, value string) error {
		return &cniapi.Error{Code: cniapi.CodeEnvironment, Msg: fmt.Sprintf("%s %q is not allowed", what, value)}
	}
	switch {
	case !nameRule.MatchString(a.Network):
		return o, refused("network name", a.Network)
	case !nameRule.MatchString(a.ContainerID):
		return o, refused("container ID", a.ContainerID)
	case !linkRule.MatchString(a.Interface) || strings.Trim(a.Interface, ".") == "":
		return o, refused("interface name", a.Interface)
	case a.Netns != "" && (!filepath.IsAbs(a.Netns) || filepath.Clean(a.Netns) != a.Netns):
		return o, refused("network namespace", a.Netns)
	}
	return ipam.Owner{Network: a.Network, Container: a.ContainerID, Interface: a.Interface}, nil
}

// checkMAC refuses what a pod's interface cannot have. Empty is for none in particular.
func checkMAC(s string) error {
	if s == "" {
		return nil
	}
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 || [6]byte(mac) == [6]byte{} {
		return &cniapi.Error{Code: cniapi.CodeConfig, Msg: fmt.Sprintf("mac %q: a unicast MAC address is needed", s)}
	}
	return nil
}
