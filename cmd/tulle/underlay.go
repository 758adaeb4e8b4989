package main

import (
	"net/netip"
	"slices"

	"github.com/tulle-net/tulle/control/netfilter"
	"github.com/tulle-net/tulle/dataplane"
	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/encap"
)

// The kinds of underlay, values of --underlay.
const (
	underlayUDP    = "udp"
	underlayPacket = "packet"
)

// An underlay is one worker's, of one family and of either kind.
type underlay interface {
	dataplane.Port
	Offloads() []string
	Fallbacks() uint64
	QueueDepth() (bytes, drops uint64, err error)
	SourcePort(*packet.Frame) uint16
	Files() []int
}

// openUnderlays opens the sockets of each family that the node has a tunnel for.
func (f *forwarder) openUnderlays() (err error) {
	c := f.config
	var locals []netip.AddrPort
	for _, family := range f.families() {
		locals = append(locals, family.local)
		if *family.underlays != nil {
			continue // adopted
		}
		if *family.underlays, err = f.openFamily(family.local, nil); err != nil {
			return err
		}
	}
	f.prober, err = newProber(c.codec, f.now, c.plainUDP(), locals...)
	return err
}

// A family is one that the node has a tunnel for.
type family struct {
	part      string // its name in a holder
	local     netip.AddrPort
	underlays *[]underlay
}

func (f *forwarder) families() (all []family) {
	c := f.config
	for _, one := range []family{
		{partUnderlay, netip.AddrPortFrom(c.link.Addr, c.port), &f.underlays}, {partUnderlay6, netip.AddrPortFrom(c.link.Addr6, c.port), &f.underlays6},
	} {
		if c.tunnels() && one.local.Addr().IsValid() {
			all = append(all, one)
		}
	}
	return all
}

// openFamily opens the sockets of all workers, or makes underlays of those that the daemon before had.
func (f *forwarder) openFamily(local netip.AddrPort, adopted []int) ([]underlay, error) {
	c := f.config
	config := encap.Config{Local: local, Framing: c.codec, Workers: c.workers, FixedSource: c.plainUDP(), TunnelGSO: f.wayOut.tunnelGSO()}
	if c.underlay == underlayUDP {
		open := func() ([]*encap.Underlay, error) { return encap.Open(config) }
		if adopted != nil {
			open = func() ([]*encap.Underlay, error) { return encap.Adopt(config, adopted) }
		}
		all, err := open()
		return underlaysOf(all), err
	}
	raw := encap.PacketConfig{Config: config, Link: f.wayOut.link, NextHops: &f.wayOut.nextHops, Clock: f.now}
	open := func() ([]*encap.PacketUnderlay, error) { return encap.OpenPacket(raw) }
	if adopted != nil {
		open = func() ([]*encap.PacketUnderlay, error) { return encap.AdoptPacket(raw, adopted) }
	}
	all, err := open()
	f.wayOut.raw = append(f.wayOut.raw, all...)
	return underlaysOf(all), err
}

func underlaysOf[U underlay](all []U) (list []underlay) {
	for _, u := range all {
		list = append(list, u)
	}
	return list
}

// allUnderlays lists those of both families.
func (f *forwarder) allUnderlays() []underlay { return slices.Concat(f.underlays, f.underlays6) }

// socketOffloads are those of the underlay's sockets, none where it has none.
func (f *forwarder) socketOffloads() []string {
	for _, u := range f.allUnderlays() {
		return u.Offloads()
	}
	return nil
}

type underlayReport struct {
	Kind        string   `json:"kind"`
	Link        string   `json:"link"`
	LinkMTU     int      `json:"linkMTU"`
	Offloads    []string `json:"offloads"`
	Limits      []string `json:"limits"`      // what this kind cannot do
	Fallbacks   uint64   `json:"fallbacks"`   // super-packets sent segment by segment because sending them whole was refused
	QueuedBytes uint64   `json:"queuedBytes"` // in the receive sockets now
	SocketDrops uint64   `json:"socketDrops"` // datagrams that found them full
	// OuterDrops are packets with a wrong outer header, or fragments without the rest, by reason. With UDP sockets the
	// kernel drops these and counts them for all of UDP and IP. Always among them are packets that came without encapsulation and not from
	// a known node on the underlay's link; a super-packet is one.
	OuterDrops map[string]uint64 `json:"outerDrops"`
	// NoNextHop says which outer addresses cannot be sent to, and why.
	NoNextHop []string `json:"noNextHop,omitempty"`
}

// dropNative is the reason of packets between pods that came without encapsulation and from nobody who may send them.
const dropNative = "drop_native_source"

func (d *daemon) underlayReport() (underlayReport, error) {
	f, c := d.forwarder, d.config
	r := underlayReport{Kind: c.underlayKind(), Link: c.link.Name, LinkMTU: c.link.MTU, Offloads: f.socketOffloads(),
		Limits: c.underlayLimits(), OuterDrops: map[string]uint64{}}
	for _, u := range f.allUnderlays() {
		bytes, drops, err := u.QueueDepth()
		if err != nil {
			return r, err
		}
		r.Fallbacks += u.Fallbacks()
		r.QueuedBytes += bytes
		r.SocketDrops += drops
	}
	f.wayOut.report(&r)
	if c.noNetfilter {
		return r, nil
	}
	native, err := netfilter.NativeDrops()
	r.OuterDrops[dropNative] = native
	return r, err
}

// underlayLimits says what the kind of underlay cannot do.
func (c *daemonConfig) underlayLimits() []string {
	switch {
	case !c.tunnels():
		return []string{"all peers have to be on " + c.link.Name, "what leaves for other nodes does not pass the engine"}
	case c.underlay == underlayPacket:
		return []string{
			"all peers have to be reached by " + c.link.Name,
			"the node's firewall and IPsec do not see the tunnel's packets",
			"what comes in counts among UDP's InErrors of the kernel",
		}
	case c.plainUDP():
		return []string{"one outer source port, as flannel's"}
	}
	return []string{"16 outer source ports"}
}

// underlayKind is the underlay as it is shown.
func (c *daemonConfig) underlayKind() string {
	if !c.tunnels() {
		return "kernel routes"
	}
	return c.underlay
}
