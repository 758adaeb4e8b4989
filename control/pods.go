package control

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/control/listing"
	"github.com/tulle-net/tulle/control/netfilter"
	"github.com/tulle-net/tulle/control/pin"
)

// Whatever is for a pod of this node passes the engine, whichever way it came: from another pod of the node, from the node, from
// outside. Two rules do that, with a table each, however many pods there are:
//
//	8401: from all iif TAP lookup 8401   what the engine hands over goes to the pod's link
//	8402: from all lookup 8402           all else that is for a pod goes to the TAP
//
// They come after the local table and before main. Tables and priorities have the same numbers.
const (
	podTable    = 8401
	engineTable = 8402

	// podProtocol marks the routes in these tables as this daemon's; those of main have another mark.
	podProtocol = 85
)

// A Pod is a pod of this node behind a link, as the kernel's routes and its netfilter know it; or one that the engine has a port to. What
// that one sends the engine holds to its addresses, and what is for it goes to the TAP wherever it came from: by the TAP comes what is
// mapped to one of its ports. It is none while the engine has no port: a packet would go round until its TTL is used up.
type Pod struct {
	Link  string // empty: the engine has a port to it
	Addrs []netip.Addr
	MAC   net.HardwareAddr
	Ports []netfilter.Port // of the node that lead to it

	Limits
}

func (p Pod) equal(o Pod) bool { return p.Link == o.Link && slices.Equal(p.Addrs, o.Addrs) }

// applyPins holds the Pods to their addresses.
func (k Kernel) applyPins(netlink.Link) (changed bool, err error) {
	if k.NoNetfilter {
		return false, nil
	}
	pins := k.pins()
	return k.rules.unlessSeen("pins", pins, func() (bool, error) { return pin.Apply(pins) })
}

func (k Kernel) applyRules(netlink.Link) (changed bool, err error) {
	for _, f := range k.families() {
		made, err := k.applyFamilyRules(f)
		changed = changed || made
		if err != nil {
			return changed, err
		}
	}
	return changed, nil
}

// applyPodRoutes makes the two tables what the Pods ask for. A pod whose link has gone or is down keeps its way to the engine, behind which
// main's unreachable route answers.
func (k Kernel) applyPodRoutes(tap netlink.Link) (changed bool, err error) {
	up, err := k.podLinks()
	if err != nil {
		return false, err
	}
	for _, f := range k.families() {
		made, err := applyPodRoutes(f, k.podRoutes(f, tap.Attrs().Index, up))
		changed = changed || made
		if err != nil {
			return changed, err
		}
	}
	return changed, nil
}

// podRules returns those of a family. They are there iff it has a subnet and pods.
func (k Kernel) podRules(f kernelFamily) (rules []*netlink.Rule) {
	if !f.subnet.IsValid() || len(k.Pods) == 0 {
		return nil
	}
	for _, number := range []int{podTable, engineTable} {
		r := netlink.NewRule()
		r.Family, r.Table, r.Priority, r.Protocol = f.number, number, number, podProtocol
		rules = append(rules, r)
	}
	rules[0].IifName = k.TAP
	return rules
}

func (k Kernel) applyFamilyRules(f kernelFamily) (changed bool, err error) {
	have, err := ownedRules(f.number)
	if err != nil {
		return false, err
	}
	want := k.podRules(f)
	for _, r := range have {
		if slices.ContainsFunc(want, func(w *netlink.Rule) bool { return sameRule(w, &r) }) {
			continue
		}
		if err := netlink.RuleDel(&r); err != nil && !errors.Is(err, unix.ENOENT) {
			return changed, fmt.Errorf("remove %s: %w", r, err)
		}
		changed = true
	}
	for _, w := range want {
		if slices.ContainsFunc(have, func(r netlink.Rule) bool { return sameRule(w, &r) }) {
			continue
		}
		if err := netlink.RuleAdd(w); err != nil {
			return changed, fmt.Errorf("add %s: %w", w, err)
		}
		changed = true
	}
	return changed, nil
}

func sameRule(a, b *netlink.Rule) bool {
	return a.Table == b.Table && a.IifName == b.IifName && a.Priority == b.Priority
}

// ownedRules lists the rules that carry this daemon's mark.
func ownedRules(family int) (owned []netlink.Rule, err error) {
	all, err := listing.Whole(func() ([]netlink.Rule, error) { return netlink.RuleList(family) })
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		if r.Protocol == podProtocol {
			r.Family = family
			owned = append(owned, r)
		}
	}
	return owned, nil
}

// podRoutes returns all routes of both tables. up has the links that are.
func (k Kernel) podRoutes(f kernelFamily, tapIndex int, up map[string]int) (routes []netlink.Route) {
	if !f.subnet.IsValid() {
		return nil
	}
	for _, p := range k.Pods {
		routes = append(routes, k.routesOf(f, p, tapIndex, up[p.Link])...)
	}
	return routes
}

// podLinks returns the indexes of links that are up, by name: no route goes to another.
func (k Kernel) podLinks() (up map[string]int, err error) {
	if len(k.Pods) == 0 {
		return nil, nil
	}
	links, err := listing.Whole(netlink.LinkList)
	if err != nil {
		return nil, err
	}
	up = map[string]int{}
	for _, l := range links {
		if l.Attrs().Flags&net.FlagUp != 0 {
			up[l.Attrs().Name] = l.Attrs().Index
		}
	}
	return up, nil
}

// routesOf returns the routes of one pod. linkIndex is 0 if its link has gone or is down.
func (k Kernel) routesOf(f kernelFamily, p Pod, tapIndex, linkIndex int) (routes []netlink.Route) {
	for _, a := range p.Addrs {
		if a.Is4() != (f.number == netlink.FAMILY_V4) {
			continue
		}
		in := f.routes(tapIndex, k.L3)
		route := in[len(in)-2] // as the network's, to the TAP
		route.Dst, route.Table, route.Protocol = ipNet(hostPrefix(a)), engineTable, podProtocol
		routes = append(routes, route)
		if linkIndex != 0 {
			routes = append(routes, netlink.Route{
				Dst: route.Dst, Table: podTable, Protocol: podProtocol, Type: unix.RTN_UNICAST, LinkIndex: linkIndex,
				Priority: route.Priority, Scope: podScope(f),
			})
		}
	}
	return routes
}

// podScope is that of a route without a gateway; IPv6 has none.
func podScope(f kernelFamily) netlink.Scope {
	if f.number == netlink.FAMILY_V4 {
		return netlink.SCOPE_LINK
	}
	return netlink.SCOPE_UNIVERSE
}

func samePodRoute(a, b netlink.Route) bool { return a.Table == b.Table && sameRoute(a, b) }

func applyPodRoutes(f kernelFamily, want []netlink.Route) (changed bool, err error) {
	have, err := ownedPodRoutes(f.number)
	if err != nil {
		return false, err
	}
	wanted, there := map[string]netlink.Route{}, map[string]bool{}
	key := func(r netlink.Route) string { return fmt.Sprint(r.Table, " ", r.Dst) }
	for _, w := range want {
		wanted[key(w)] = w
	}
	for _, r := range have {
		if w, ok := wanted[key(r)]; ok && samePodRoute(w, r) {
			there[key(r)] = true
			continue
		}
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return changed, fmt.Errorf("remove %s of table %d: %w", r.Dst, r.Table, err)
		}
		changed = true
	}
	for _, w := range want {
		if there[key(w)] {
			continue
		}
		if err := netlink.RouteReplace(&w); err != nil {
			return changed, fmt.Errorf("add %s to table %d: %w", w.Dst, w.Table, err)
		}
		changed = true
	}
	return changed, nil
}

// ownedPodRoutes lists the routes of both tables that carry this daemon's mark.
func ownedPodRoutes(family int) (routes []netlink.Route, err error) {
	for _, table := range []int{podTable, engineTable} {
		some, err := listing.Whole(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Table: table, Protocol: podProtocol}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
		})
		if err != nil {
			return nil, err
		}
		routes = append(routes, some...)
	}
	return routes, nil
}

func pins(pods []Pod) (all []pin.Pod) {
	for _, p := range pods {
		if p.Link == "" {
			continue
		}
		all = append(all, pin.Pod{Link: p.Link, Addrs: p.Addrs, MAC: p.MAC})
	}
	return all
}

func (k Kernel) pins() []pin.Pod { return pins(k.Pods) }

// pin changes what is pinned, or makes it all anew when it is not what was left.
func (k Kernel) pin(add, remove []Pod) error {
	if len(pins(add))+len(pins(remove)) == 0 {
		return nil
	}
	if pin.Change(pins(add), pins(remove)) == nil && len(k.pins()) > 0 {
		return nil
	}
	_, err := pin.Apply(k.pins())
	return err
}

// addPod makes the rules and the routes of one pod.
func (k Kernel) addPod(p Pod) error {
	tap, err := netlink.LinkByName(k.TAP)
	if err != nil {
		return fmt.Errorf("link %s: %w", k.TAP, err)
	}
	index := 0
	if p.Link != "" {
		link, err := netlink.LinkByName(p.Link)
		if err != nil {
			return fmt.Errorf("link %s: %w", p.Link, err)
		}
		index = link.Attrs().Index
	}
	for _, f := range k.families() {
		if !f.subnet.IsValid() {
			continue
		}
		if _, err := k.applyFamilyRules(f); err != nil {
			return err
		}
		for _, r := range k.routesOf(f, p, tap.Attrs().Index, index) {
			if err := netlink.RouteReplace(&r); err != nil {
				return fmt.Errorf("add route %s to table %d: %w", r.Dst, r.Table, err)
			}
		}
	}
	return nil
}

// removePod removes the routes of one pod. Without a link they are the kernel's to remove, or gone.
func (k Kernel) removePod(p Pod) error {
	var errs []error
	for _, a := range p.Addrs {
		for _, table := range []int{podTable, engineTable} {
			r := netlink.Route{Dst: ipNet(hostPrefix(a)), Table: table, Protocol: podProtocol, Scope: netlink.SCOPE_NOWHERE} // of any scope
			if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("remove route %s from table %d: %w", a, table, err))
			}
		}
	}
	return errors.Join(errs...)
}

// removePods removes all of both tables, the rules, and what held the pods to their addresses.
func (k Kernel) removePods() error {
	var errs []error
	if !k.NoNetfilter {
		_, err := pin.Apply(nil)
		errs = append(errs, err)
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := ownedRules(family)
		errs = append(errs, err)
		for _, r := range rules {
			errs = append(errs, netlink.RuleDel(&r))
		}
		_, err = applyPodRoutes(kernelFamily{number: family}, nil)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// SetPods says which pods there are from now on.
func (r *Reconciler) SetPods(pods []Pod) {
	r.mu.Lock()
	r.want.Pods = slices.Clone(pods)
	r.mu.Unlock()
	r.Wake()
}

// PinPod holds a pod to its addresses before it has its link: not a packet of it passes that should not.
func (r *Reconciler) PinPod(p Pod) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.Link == "" {
		return nil // the engine does
	}
	if r.want.NoNetfilter {
		return errors.New("pods cannot be held to their addresses: this kernel has no nftables (CONFIG_NF_TABLES)")
	}
	r.want.Pods = append(slices.Clip(r.want.Pods), p)
	return r.want.pin([]Pod{p}, nil)
}

// AddPod makes the kernel's routes and the node's ports to a pod that is pinned, and its limits.
func (r *Reconciler) AddPod(p Pod) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.Link == "" {
		r.want.Pods = append(slices.Clip(r.want.Pods), p)
	}
	if err := r.want.addPod(p); err != nil {
		return err
	}
	if _, err := p.applyLimits(); err != nil {
		return err
	}
	return r.want.changePorts(p, false)
}

// RemovePod removes the kernel's routes and the node's ports to a pod, and its limits. It is no error if there is no such pod.
func (r *Reconciler) RemovePod(p Pod) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	had := len(r.want.Pods)
	r.want.Pods = slices.DeleteFunc(slices.Clone(r.want.Pods), p.equal)
	var unpinned error
	if len(r.want.Pods) < had {
		unpinned = r.want.pin(nil, []Pod{p})
	}
	return errors.Join(r.want.removePod(p), p.removeLimits(), r.want.changePorts(p, true), unpinned)
}

// changePorts makes the node's ports those of all pods, after one has come or gone.
func (k Kernel) changePorts(p Pod, gone bool) error {
	if len(p.Ports) == 0 {
		return nil
	}
	if _, err := k.applyNetfilter(nil); err != nil {
		return err
	}
	return netfilter.Forget(p.Ports, gone)
}
