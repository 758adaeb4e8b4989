package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// peer is this node: what it has open, knows and has counted. Its loops share it.
type peer struct {
	config
	tun  *os.File
	conn *net.UDPConn

	sent, received, noRoute, expired, notIPv4, refused atomic.Uint64

	mu      sync.Mutex // guards what follows
	sources map[string]uint64
	text    []byte // of the file that routes are from
	routes  []route
}

type route struct {
	PublicIP netip.Addr   `json:"publicIP"`
	Subnet   netip.Prefix `json:"subnet"`
}

// status is what the unix socket gives: counters of packets, and of datagrams by where they came from.
type status struct {
	Peers    int               `json:"peers"`
	Sent     uint64            `json:"sent"`
	Received uint64            `json:"received"`
	NoRoute  uint64            `json:"noRoute"`
	Expired  uint64            `json:"expired"` // the TTL was at its end
	NotIPv4  uint64            `json:"notIPv4"` // not one whole IPv4 packet
	Refused  uint64            `json:"refused"` // by the kernel
	Sources  map[string]uint64 `json:"sources"` // by address:port
}

// maxSources bounds what strangers can make it remember.
const maxSources = 1000

// loadRoutes reads the file of peers, and does nothing if it is what it was.
func (p *peer) loadRoutes() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	text, err := os.ReadFile(p.peers)
	if err != nil {
		return err
	}
	if p.text != nil && bytes.Equal(text, p.text) {
		return nil
	}
	var routes []route
	if err := json.Unmarshal(text, &routes); err != nil {
		return fmt.Errorf("%s: %w", p.peers, err)
	}
	p.text, p.routes = text, routes
	return nil
}

func (p *peer) watchRoutes() error {
	for ; ; time.Sleep(reread) {
		if err := p.loadRoutes(); err != nil {
			return err
		}
	}
}

func (p *peer) route(to netip.Addr) (netip.Addr, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.routes {
		if r.Subnet.Contains(to) {
			return r.PublicIP, true
		}
	}
	return netip.Addr{}, false
}

func (p *peer) saw(from netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sources == nil {
		p.sources = map[string]uint64{}
	}
	if name := from.String(); p.sources[name] > 0 || len(p.sources) < maxSources {
		p.sources[name]++
	}
}

// serve gives the status to everyone who connects, with the routes of this moment.
func (p *peer) serve(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		if err := p.loadRoutes(); err != nil {
			return err
		}
		p.mu.Lock()
		json.NewEncoder(c).Encode( // who is gone gets nothing
			status{Peers: len(p.routes), Sent: p.sent.Load(), Received: p.received.Load(),
				NoRoute: p.noRoute.Load(), Expired: p.expired.Load(), NotIPv4: p.notIPv4.Load(), Refused: p.refused.Load(),
				Sources: p.sources})
		p.mu.Unlock()
		c.Close()
	}
}
