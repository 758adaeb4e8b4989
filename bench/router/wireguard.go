package router

import (
	"fmt"
	"net/netip"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
)

// room is kept free in front of each packet: package tun puts virtio's header there.
const room = 16

// segmenting reads and writes batches of segments; package tun cuts and joins super-packets, package conn does so with datagrams.
type segmenting struct {
	tun       tun.Device
	bind      conn.Bind
	receivers []conn.ReceiveFunc
}

func openWireGuard(r *router) (device, error) {
	t, err := tun.CreateTUN(deviceName, r.mtu)
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", deviceName, err)
	}
	go func() { // it blocks when nobody listens
		for range t.Events() {
		}
	}()
	d := &segmenting{tun: t, bind: conn.NewStdNetBind()}
	if d.receivers, _, err = d.bind.Open(port); err != nil {
		return nil, fmt.Errorf("bind port %d: %w", port, err)
	}
	return d, nil
}

func (d *segmenting) forward(r *router) error {
	failed := make(chan error, 1+len(d.receivers))
	go func() { failed <- d.send(r) }()
	for _, receive := range d.receivers {
		go func() { failed <- d.receive(r, receive) }()
	}
	return <-failed
}

func buffers(n int) ([][]byte, []int) {
	b := make([][]byte, n)
	for i := range b {
		b[i] = make([]byte, 1<<16)
	}
	return b, make([]int, n)
}

func (d *segmenting) send(r *router) error {
	bufs, sizes := buffers(d.tun.BatchSize())
	endpoints := map[netip.Addr]conn.Endpoint{}
	var run [][]byte
	for {
		n, err := d.tun.Read(bufs, sizes, room)
		if err != nil {
			return fmt.Errorf("read from %s: %w", deviceName, err)
		}
		var to netip.Addr
		run = run[:0]
		for i := range n {
			packet := bufs[i][room : room+sizes[i]]
			if !hop(packet) {
				continue
			}
			next, ok := r.route(packet)
			if !ok {
				continue
			}
			if next != to && len(run) > 0 {
				d.flush(r, run, to, endpoints)
				run = run[:0]
			}
			to, run = next, append(run, packet)
		}
		if len(run) > 0 {
			d.flush(r, run, to, endpoints)
		}
	}
}

// flush sends packets to one node.
func (d *segmenting) flush(r *router, run [][]byte, to netip.Addr, endpoints map[netip.Addr]conn.Endpoint) {
	e := endpoints[to]
	if e == nil {
		var err error
		if e, err = d.bind.ParseEndpoint(netip.AddrPortFrom(to, port).String()); err != nil {
			return
		}
		endpoints[to] = e
	}
	if d.bind.Send(run, e) == nil {
		r.sent.Add(uint64(len(run)))
	}
}

func (d *segmenting) receive(r *router, read conn.ReceiveFunc) error {
	bufs, sizes := buffers(d.bind.BatchSize())
	endpoints := make([]conn.Endpoint, len(bufs))
	into := make([][]byte, len(bufs))
	for i := range bufs {
		into[i] = bufs[i][room:]
	}
	var run [][]byte
	for {
		n, err := read(into, sizes, endpoints)
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		run = run[:0]
		for i := range n {
			if sizes[i] > 0 && hop(into[i][:sizes[i]]) {
				run = append(run, bufs[i][:room+sizes[i]])
			}
		}
		if len(run) == 0 {
			continue
		}
		if _, err := d.tun.Write(run, room); err == nil {
			r.received.Add(uint64(len(run)))
		}
	}
}
