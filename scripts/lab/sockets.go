package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// Pair is a way that a packet can take: from a namespace to the address of a pod.
type Pair struct {
	From, To string // namespaces
	Addr     netip.Addr
	Local    bool // both on one node
}

// PodPairs lists all ordered pairs of different pods, for each family of the lab.
func (l *Lab) PodPairs() []Pair {
	nodes := l.Nodes()
	var pairs []Pair
	for _, a := range nodes {
		for _, from := range a.Pods {
			for _, p := range pairsTo(nodes, from.Namespace, a.Number) {
				if p.From != p.To {
					pairs = append(pairs, p)
				}
			}
		}
	}
	return pairs
}

// NodePairs lists every node that has a subnet with every pod, its own included, for each family of the lab.
func (l *Lab) NodePairs() []Pair {
	nodes := l.Nodes()
	var pairs []Pair
	for _, a := range nodes {
		if !a.Subnet.IsValid() && !a.IPv6Subnet.IsValid() {
			continue
		}
		pairs = append(pairs, pairsTo(nodes, a.Namespace, a.Number)...)
	}
	return pairs
}

// Addrs are the addresses that the pod has, one of each family of its lab.
func (p Pod) Addrs() (addrs []netip.Addr) {
	for _, a := range []netip.Addr{p.Addr, p.Addr6} {
		if a.IsValid() {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

func pairsTo(nodes []Node, from string, number int) []Pair {
	var pairs []Pair
	for _, n := range nodes {
		for _, to := range n.Pods {
			for _, a := range to.Addrs() {
				pairs = append(pairs, Pair{From: from, To: to.Namespace, Addr: a, Local: n.Number == number})
			}
		}
	}
	return pairs
}

// network is protocol for the family of p, as package net names it.
func (p Pair) network(protocol string) string {
	if p.Addr.Is6() {
		return protocol + "6"
	}
	return protocol + "4"
}

// TCP gives the two ends of a new connection over p: from is in p.From, to in p.To, on a port of the kernel's choice.
func (p Pair) TCP(ctx context.Context) (from, to net.Conn, err error) {
	var ln net.Listener
	err = In(p.To, func() (err error) {
		var c net.ListenConfig
		c.SetMultipathTCP(false)
		ln, err = c.Listen(ctx, p.network("tcp"), netip.AddrPortFrom(p.Addr, 0).String())
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("listen in %s: %w", p.To, err)
	}
	defer ln.Close()
	err = In(p.From, func() (err error) {
		var d net.Dialer
		from, err = d.DialContext(ctx, p.network("tcp"), ln.Addr().String())
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("connect %s to %s: %w", p.From, p.To, err)
	}
	// from is established, but the last ACK of the handshake may be on its way still.
	ln.(*net.TCPListener).SetDeadline(time.Now().Add(5 * time.Second))
	if to, err = ln.Accept(); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("accept in %s: %w", p.To, err), from.Close())
	}
	return from, to, nil
}

// UDP gives a socket in p.From connected to one in p.To.
func (p Pair) UDP() (from, to *net.UDPConn, err error) {
	err = In(p.To, func() (err error) {
		to, err = net.ListenUDP(p.network("udp"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.Addr, 0)))
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("listen in %s: %w", p.To, err)
	}
	err = In(p.From, func() (err error) {
		from, err = net.DialUDP(p.network("udp"), nil, to.LocalAddr().(*net.UDPAddr))
		return err
	})
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("connect %s to %s: %w", p.From, p.To, err), to.Close())
	}
	return from, to, nil
}
