// Command flannelpeer is a node of flannel's udp backend, for tests: an independent implementation of the wire format, which
// shares no code with tulle. A TUN device carries bare IPv4 packets, each is one UDP datagram, port 8285 on both sides.
//
// It owns the device flannel0 of its namespace and the one UDP socket. It does what flannel does and leaves out what flannel
// leaves out: no check of sources or lengths, no IPv6, no MTU of a path; the TTL goes down by one on each side.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"
)

// port is flannel's default, both source and destination.
const port = 8285

// reread is how often the file of peers is looked at; a request for the counters looks too.
const reread = 200 * time.Millisecond

type config struct {
	network, subnet netip.Prefix
	publicIP        netip.Addr
	mtu             int // of flannel0, bytes
	peers, socket   string
}

func main() {
	var c config
	flag.TextVar(&c.network, "network", netip.Prefix{}, "the cluster's network")
	flag.TextVar(&c.subnet, "subnet", netip.Prefix{}, "this node's part of it")
	flag.TextVar(&c.publicIP, "public-ip", netip.Addr{}, "this node's address on the underlay")
	flag.IntVar(&c.mtu, "mtu", 1472, "of flannel0, bytes: the underlay's less 28")
	flag.StringVar(&c.peers, "peers", "", `file with the other nodes: [{"publicIP":"192.168.77.2","subnet":"10.244.2.0/24"}]`)
	flag.StringVar(&c.socket, "socket", "", "path of a unix socket that gives the counters, as JSON, to whoever connects")
	flag.Parse()
	if err := run(c); err != nil {
		fmt.Fprintln(os.Stderr, "flannelpeer:", err)
		os.Exit(1)
	}
}

// run ends with the first error only.
func run(c config) error {
	tun, err := openTUN(c)
	if err != nil {
		return err
	}
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.publicIP, port)))
	if err != nil {
		return err
	}
	p := &peer{config: c, tun: tun, conn: conn}
	if err := p.loadRoutes(); err != nil {
		return err
	}
	os.Remove(c.socket) // a killed one's
	counters, err := net.Listen("unix", c.socket)
	if err != nil {
		return err
	}
	ctx, failed := context.WithCancelCause(context.Background())
	defer failed(nil)
	for _, loop := range []func() error{p.send, p.receive, func() error { return p.serve(counters) }, p.watchRoutes} {
		go func() { failed(loop()) }()
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

// send carries packets from the TUN device to the peers.
func (p *peer) send() error {
	b := make([]byte, p.mtu)
	for {
		n, err := p.tun.Read(b)
		if err != nil {
			return fmt.Errorf("read from flannel0: %w", err)
		}
		packet := b[:n]
		if n < headerLength || packet[0]>>4 != 4 {
			p.notIPv4.Add(1)
			continue
		}
		to, ok := p.route(destination(packet))
		if !ok {
			p.noRoute.Add(1)
			if _, err := p.tun.Write(unreachable(packet, p.subnet.Addr())); err != nil {
				return fmt.Errorf("write to flannel0: %w", err)
			}
			continue
		}
		if !decrementTTL(packet) {
			p.expired.Add(1)
			continue
		}
		if _, err := p.conn.WriteToUDPAddrPort(packet, netip.AddrPortFrom(to, port)); err != nil {
			p.refused.Add(1)
			continue
		}
		p.sent.Add(1)
	}
}

// receive carries packets from the peers to the TUN device.
func (p *peer) receive() error {
	b := make([]byte, p.mtu)
	for {
		n, from, err := p.conn.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil { // an ICMP message's
			continue
		}
		p.saw(from)
		packet := b[:n]
		if !bare(packet) {
			p.notIPv4.Add(1)
		}
		if n < headerLength {
			continue
		}
		if !decrementTTL(packet) {
			p.expired.Add(1)
			continue
		}
		if _, err := p.tun.Write(packet); err != nil {
			p.refused.Add(1)
			continue
		}
		p.received.Add(1)
	}
}
