package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/control/listing"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// resolveInterval bounds how long a change that the kernel does not announce (a policy rule) stays unseen, and how soon a
// neighbour that did not answer is asked for again.
const resolveInterval = time.Second

// A NextHop is where the underlay's link hands over what goes to an outer address.
type NextHop struct {
	MAC    tables.MAC // of the peer, or of the gateway before it
	Source tables.MAC // of the link
	MTU    int        // of the way there as the kernel knows it, bytes
}

// Hops is where everything goes at one moment. It is not changed after it was handed over.
type Hops struct {
	Link     int // index; 0 while there is no such link
	Next     map[netip.Addr]NextHop
	OnLink   map[netip.Addr]tables.MAC // of those that are neighbours themselves; one that does not answer now keeps its last MAC
	Problems []string                  // one for each address that has no next hop, and those of the link
}

func (h Hops) equal(o Hops) bool {
	return h.Link == o.Link && maps.Equal(h.Next, o.Next) && maps.Equal(h.OnLink, o.OnLink) && slices.Equal(h.Problems, o.Problems)
}

// A Resolver finds the next hops of outer addresses, for an underlay that sends whole frames: the kernel's routes say which
// neighbour it is, and the kernel resolves it and keeps it alive (NTF_MANAGED, before Linux 5.16 NTF_USE now and then). An IPv6
// neighbour on a link without link-local address is pinged while it is unknown, for want of anything else that works. It
// looks at everything after each announcement of the kernel's, after each Want, and now and then.
//
// Its methods are safe for concurrent use, but Look, which is called before Run; Run is called once.
type Resolver struct {
	// Passive leaves the neighbours to the kernel, for senders that do without a next hop while it does not know one, and nothing is
	// logged. It is not changed after Look or Run.
	Passive bool

	link  string
	local [2]netip.Addr // the node's outer addresses, of IPv4 and IPv6; zero without the family
	apply func(Hops) error
	wake  chan struct{}

	// Of Run alone.
	probed  bool // plain is known
	plain   bool // the kernel does not manage neighbours
	managed map[neighbour]bool
	applied bool // the last Hops have arrived

	mu      sync.Mutex // guards the rest
	want    []netip.Addr
	current Hops
	failure string // why they were not taken
}

// A neighbour is one on the underlay's link.
type neighbour struct {
	link int
	addr netip.Addr
}

// NewResolver returns a resolver for the ways out of the named link, with the node's address of each family as the source.
// apply is called, from Run or Look, with everything each time something has changed, and again while it fails.
func NewResolver(u UnderlayLink, apply func(Hops) error) *Resolver {
	return &Resolver{link: u.Name, local: [2]netip.Addr{u.Addr, u.Addr6}, apply: apply, wake: make(chan struct{}, 1), managed: map[neighbour]bool{}}
}

// Want says which outer addresses are sent to from now on.
func (r *Resolver) Want(addrs []netip.Addr) {
	want := slices.Clone(addrs)
	slices.SortFunc(want, netip.Addr.Compare)
	r.mu.Lock()
	r.want = slices.Compact(want)
	r.mu.Unlock()
	r.Wake()
}

// Wake makes Run look at once.
func (r *Resolver) Wake() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Problems returns why some addresses cannot be sent to now.
func (r *Resolver) Problems() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failure != "" {
		return append(slices.Clone(r.current.Problems), r.failure)
	}
	return r.current.Problems
}

// Look resolves once, before Run, so that what the kernel knows of the ways to go is there when the first packet comes.
func (r *Resolver) Look() { r.pass() }

// Run resolves until ctx ends. Then it leaves the neighbours to the kernel.
func (r *Resolver) Run(ctx context.Context) error {
	r.Wake()
	var wg sync.WaitGroup
	wg.Go(func() { watch(ctx, true, r.Wake) })
	defer wg.Wait()
	defer r.release(nil)
	ticker := time.NewTicker(resolveInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-r.wake:
			time.Sleep(settleTime)
		}
		r.pass()
	}
}

// pass resolves everything once and hands over what has changed.
func (r *Resolver) pass() {
	r.mu.Lock()
	want, before := r.want, r.current
	r.mu.Unlock()
	hops := r.resolve(want, before.OnLink)
	if r.applied && hops.equal(before) {
		return
	}
	for _, p := range hops.Problems {
		if !r.Passive && !slices.Contains(before.Problems, p) {
			slog.Warn("no next hop", "problem", p)
		}
	}
	err := r.apply(hops)
	r.applied = err == nil
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current, r.failure = hops, ""; err != nil {
		r.failure = err.Error()
	}
}

// resolve looks at link, routes and neighbours, and asks the kernel for neighbours that are missing. onLink is what it found before.
func (r *Resolver) resolve(want []netip.Addr, onLink map[netip.Addr]tables.MAC) Hops {
	hops := Hops{Next: map[netip.Addr]NextHop{}, OnLink: map[netip.Addr]tables.MAC{}}
	link, err := netlink.LinkByName(r.link)
	if err == nil && link.Attrs().Flags&net.FlagUp == 0 {
		err = errors.New("it is down")
	}
	if link != nil {
		hops.Link = link.Attrs().Index
	}
	known := map[netip.Addr]netlink.Neigh{}
	if err == nil {
		known, err = neighboursOf(hops.Link)
	}
	if err != nil {
		hops.Problems = []string{fmt.Sprintf("underlay link %s: %v", r.link, err)}
		return hops
	}
	used := map[neighbour]bool{}
	for _, addr := range want {
		hop, gateway, err := r.resolveOne(link, addr, known, used)
		if mac, ok := onLink[addr]; ok && err != nil && gateway == addr {
			hops.OnLink[addr] = mac
		}
		if err != nil {
			hops.Problems = append(hops.Problems, fmt.Sprintf("underlay address %s: %v", addr, err))
			continue
		}
		hops.Next[addr] = hop
		if gateway == addr {
			hops.OnLink[addr] = hop.MAC
		}
	}
	r.release(used)
	return hops
}

// neighboursOf lists what the kernel knows of a link's neighbours, of both families.
func neighboursOf(link int) (map[netip.Addr]netlink.Neigh, error) {
	known := map[netip.Addr]netlink.Neigh{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := listing.Whole(func() ([]netlink.Neigh, error) { return netlink.NeighList(link, family) })
		if err != nil {
			return nil, fmt.Errorf("list neighbours: %w", err)
		}
		for _, n := range list {
			if addr, ok := netip.AddrFromSlice(n.IP); ok {
				known[addr.Unmap()] = n
			}
		}
	}
	return known, nil
}

// resolveOne finds the next hop of one address, and which neighbour that is, known or not. It adds to used the neighbour that it depends on.
func (r *Resolver) resolveOne(link netlink.Link, addr netip.Addr, known map[netip.Addr]netlink.Neigh, used map[neighbour]bool) (NextHop, netip.Addr, error) {
	route, err := r.routeTo(addr)
	if err != nil {
		return NextHop{}, netip.Addr{}, err
	}
	attrs := link.Attrs()
	if route.LinkIndex != attrs.Index {
		return NextHop{}, netip.Addr{}, fmt.Errorf("its route leads to link %s and not to %s, the only one that a raw underlay uses: set the route, --iface, or --underlay udp", linkName(route.LinkIndex), r.link)
	}
	via := neighbour{attrs.Index, gatewayOf(route, addr)}
	used[via] = true
	n, ok := known[via.addr]
	if !r.Passive {
		r.keep(via, n, ok)
	}
	if !ok || n.State&usableStates == 0 || len(n.HardwareAddr) != 6 {
		return NextHop{}, via.addr, fmt.Errorf("neighbour %s on %s has not answered yet", via.addr, r.link)
	}
	hop := NextHop{MAC: tables.MAC(n.HardwareAddr), MTU: min(cmp.Or(route.MTU, attrs.MTU), attrs.MTU)}
	copy(hop.Source[:], attrs.HardwareAddr)
	return hop, via.addr, nil
}

// usableStates are those of a neighbour whose MAC the kernel itself would send to.
const usableStates = netlink.NUD_PERMANENT | netlink.NUD_NOARP | netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE

// routeTo asks the kernel, as for a datagram from the node's own address.
func (r *Resolver) routeTo(addr netip.Addr) (netlink.Route, error) {
	local := r.local[0]
	if addr.Is6() {
		local = r.local[1]
	}
	options := &netlink.RouteGetOptions{}
	if local.IsValid() {
		options.SrcAddr = local.AsSlice()
	}
	routes, err := netlink.RouteGetWithOptions(addr.AsSlice(), options)
	switch {
	case err != nil:
		return netlink.Route{}, fmt.Errorf("no route from %s: %w", local, err)
	case len(routes) == 0 || routes[0].Type != unix.RTN_UNICAST:
		return netlink.Route{}, errors.New("no route to another host")
	}
	return routes[0], nil
}

// gatewayOf returns the neighbour that a route leads to.
func gatewayOf(route netlink.Route, dst netip.Addr) netip.Addr {
	gateway := route.Gw
	if via, ok := route.Via.(*netlink.Via); ok { // of the other family
		gateway = via.Addr
	}
	if addr, ok := netip.AddrFromSlice(gateway); ok {
		return addr.Unmap()
	}
	return dst
}

func linkName(index int) string {
	link, err := netlink.LinkByIndex(index)
	if err != nil {
		return fmt.Sprintf("number %d", index)
	}
	return link.Attrs().Name
}

// keep makes the kernel resolve a neighbour and go on to, unless somebody gave its MAC for good.
func (r *Resolver) keep(via neighbour, n netlink.Neigh, known bool) {
	const asked = netlink.NUD_REACHABLE | netlink.NUD_INCOMPLETE | netlink.NUD_DELAY | netlink.NUD_PROBE
	switch managed := n.FlagsExt&netlink.NTF_EXT_MANAGED != 0; {
	case known && n.State&(netlink.NUD_PERMANENT|netlink.NUD_NOARP) != 0:
		return
	case via.addr.Is6() && !hasLinkLocal(via.link):
		if !known || n.State&(usableStates|netlink.NUD_INCOMPLETE) == 0 {
			r.ping(via)
		}
		return
	case known && managed && n.State&(usableStates|netlink.NUD_INCOMPLETE) != 0:
	case known && r.plain && n.State&asked != 0:
	default:
		r.ask(via)
	}
	r.managed[via] = true
}

// ask makes the kernel look for a neighbour now (NTF_USE), whatever it knows, and manage it. The first time it finds out
// whether the kernel does: an old one ignores the flag or refuses it.
func (r *Resolver) ask(via neighbour) {
	err := netlink.NeighSet(via.entry(!r.plain))
	if r.probed || r.plain || err != nil && !errors.Is(err, unix.EINVAL) {
		return
	}
	r.probed = true
	known, _ := neighboursOf(via.link)
	if n, ok := known[via.addr]; err != nil || ok && n.FlagsExt&netlink.NTF_EXT_MANAGED == 0 {
		slog.Info("the kernel does not keep neighbours up to date by itself (NTF_MANAGED, Linux 5.16): it is asked to again and again")
		r.plain = true
	}
}

// hasLinkLocal says whether the kernel can ask for IPv6 neighbours without a packet to send there: it does so from a
// link-local address alone (Linux 6.18, ndisc_send_ns).
func hasLinkLocal(link int) bool {
	addrs, err := listing.Whole(func() ([]netlink.Addr, error) {
		return netlink.AddrList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: link}}, netlink.FAMILY_V6)
	})
	return err != nil || slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.IsLinkLocalUnicast() })
}

// ping sends an echo request (RFC 4443 section 4.1) to an IPv6 neighbour from the node's own address, so that the kernel asks
// for it from there. Nobody waits for the answer.
func (r *Resolver) ping(via neighbour) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	if err != nil {
		slog.Warn("a neighbour is not asked for", "neighbour", via.addr, "error", err)
		return
	}
	defer unix.Close(fd)
	err = unix.Bind(fd, &unix.SockaddrInet6{Addr: r.local[1].As16()})
	if err == nil {
		const echoRequest = 128
		err = unix.Sendto(fd, []byte{echoRequest, 7: 0}, 0, &unix.SockaddrInet6{Addr: via.addr.As16(), ZoneId: uint32(via.link)})
	}
	if err != nil {
		slog.Warn("a neighbour is not asked for", "neighbour", via.addr, "error", err)
	}
}

// entry is the neighbour as one that is in use.
func (v neighbour) entry(managed bool) *netlink.Neigh {
	n := &netlink.Neigh{LinkIndex: v.link, Family: netlink.FAMILY_V4, IP: v.addr.AsSlice(), Flags: netlink.NTF_USE}
	if v.addr.Is6() {
		n.Family = netlink.FAMILY_V6
	}
	if managed {
		n.FlagsExt = netlink.NTF_EXT_MANAGED
	}
	return n
}

// release leaves the neighbours that are not used any more to the kernel.
func (r *Resolver) release(used map[neighbour]bool) {
	for via := range r.managed {
		if used[via] {
			continue
		}
		if !r.plain {
			netlink.NeighSet(via.entry(false)) // which takes the flag away; the link may be gone, and the neighbour with it
		}
		delete(r.managed, via)
	}
}
