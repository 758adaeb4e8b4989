// Package ipam owns which pod has which addresses of the node's subnets, and which ports of the node: an allocator, and its state on disk.
//
// It follows the semantics of the CNI plugin host-local: addresses are handed out in turn, so that one which was just freed comes
// back only after the range has wrapped, and a container's interface can ask for static ones. It touches no kernel state and
// does not know where the subnets come from.
package ipam

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// Errors that callers tell apart.
var (
	ErrFull    = errors.New("no address is free")
	ErrTaken   = errors.New("address is taken")
	ErrHeld    = errors.New("interface has addresses already")
	ErrForeign = errors.New("address is not of this node's pods")
	ErrPort    = errors.New("port of the node is mapped")
)

// An Owner is one interface of one container on one network.
type Owner struct {
	Network   string `json:"network"` // name of the CNI configuration
	Container string `json:"container"`
	Interface string `json:"interface"`
}

func (o Owner) String() string {
	return fmt.Sprintf("%s of container %s on %s", o.Interface, o.Container, o.Network)
}

// A Lease is what an owner has: one address of each pool that there was.
type Lease struct {
	Owner
	Netns string       `json:"netns"` // path of the network namespace when the lease was made
	Addrs []netip.Addr `json:"addrs"` // IPv4 first
	Ports []Port       `json:"ports,omitempty"`

	// What else the interface was made with; nothing here depends on it.
	Kind string `json:"kind,omitempty"` // of interface: cniapi's
	MAC  string `json:"mac,omitempty"`  // asked for; empty: none in particular
	MTU  int    `json:"mtu"`            // bytes

	Bandwidth Bandwidth `json:"bandwidth,omitzero"`
}

// A Bandwidth bounds what a pod gets (ingress) and sends (egress). A rate of 0 bounds nothing.
type Bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`  // bits/s
	IngressBurst uint64 `json:"ingressBurst,omitempty"` // bits
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

// A Pool is what addresses are taken from: all of a subnet but its reserved ones.
type Pool struct {
	Subnet   netip.Prefix // masked
	Reserved []netip.Addr
}

// holds says whether a pod may have the address.
func (p Pool) holds(a netip.Addr) bool {
	return p.Subnet.Contains(a) && !slices.Contains(p.Reserved, a)
}

// A table is the allocator. Its zero value is empty and ready. It is not safe for concurrent use.
type table struct {
	leases map[Owner]Lease
	owners map[netip.Addr]Owner
	last   [2]netip.Addr // handed out last in turn, by family: IPv4, IPv6
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// allocate gives the owner in want one address of each pool. want.Addrs are the static ones, at most one for each pool; they do
// not move the turn. On an error nothing has changed.
func (t *table) allocate(want Lease, pools []Pool) (Lease, error) {
	if have, ok := t.leases[want.Owner]; ok {
		return have, fmt.Errorf("%s: %w: %v", want.Owner, ErrHeld, have.Addrs)
	}
	if len(pools) == 0 {
		return Lease{}, ErrFull
	}
	if err := t.checkPorts(want); err != nil {
		return Lease{}, err
	}
	got, last := want, t.last
	got.Addrs = nil
	static := slices.Clone(want.Addrs)
	for _, p := range pools {
		a, err := t.pick(p, &static, &last)
		if err != nil {
			return Lease{}, err
		}
		got.Addrs = append(got.Addrs, a)
	}
	if len(static) > 0 {
		return Lease{}, fmt.Errorf("%s: %w", static[0], ErrForeign)
	}
	t.put(got)
	t.last = last
	return got, nil
}

// pick takes the static address of the pool, which it removes from the list, or the next one in turn.
func (t *table) pick(p Pool, static *[]netip.Addr, last *[2]netip.Addr) (netip.Addr, error) {
	if i := slices.IndexFunc(*static, p.Subnet.Contains); i >= 0 {
		a := (*static)[i]
		*static = slices.Delete(*static, i, i+1)
		if !p.holds(a) {
			return a, fmt.Errorf("%s is the node's own: %w", a, ErrForeign)
		}
		if owner, taken := t.owners[a]; taken {
			return a, fmt.Errorf("%s: %w by %s", a, ErrTaken, owner)
		}
		return a, nil
	}
	a, ok := t.next(p, last[family(p.Subnet.Addr())])
	if !ok {
		return a, fmt.Errorf("subnet %s: %w", p.Subnet, ErrFull)
	}
	last[family(a)] = a
	return a, nil
}

// next finds the first free address behind last, wrapping at the subnet's end. Of as many addresses as are taken or reserved,
// and one more, one must be free, unless the subnet has no more.
func (t *table) next(p Pool, last netip.Addr) (netip.Addr, bool) {
	first := p.Subnet.Addr()
	a := last
	if !p.Subnet.Contains(a) {
		a = netip.Addr{}
	}
	for range len(t.owners) + len(p.Reserved) + 1 {
		if a = a.Next(); !p.Subnet.Contains(a) { // the zero Addr has no next one
			a = first
		}
		if _, taken := t.owners[a]; !taken && p.holds(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func (t *table) put(l Lease) {
	if t.leases == nil {
		t.leases, t.owners = map[Owner]Lease{}, map[netip.Addr]Owner{}
	}
	t.leases[l.Owner] = l
	for _, a := range l.Addrs {
		t.owners[a] = l.Owner
	}
}

// free takes the owner's addresses back. It reports whether there were any.
func (t *table) free(o Owner) (Lease, bool) {
	l, ok := t.leases[o]
	if !ok {
		return l, false
	}
	delete(t.leases, o)
	for _, a := range l.Addrs {
		delete(t.owners, a)
	}
	return l, true
}

// all lists the leases in the order of their addresses.
func (t *table) all() []Lease {
	return slices.SortedFunc(maps.Values(t.leases), func(a, b Lease) int { return slices.CompareFunc(a.Addrs, b.Addrs, netip.Addr.Compare) })
}
