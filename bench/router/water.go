package router

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/songgao/water"
)

// plain moves one packet with each system call.
type plain struct {
	tun  *water.Interface
	conn *net.UDPConn
}

func openWater(r *router) (device, error) {
	tun, err := water.New(water.Config{DeviceType: water.TUN, PlatformSpecificParams: water.PlatformSpecificParams{Name: deviceName}})
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", deviceName, err)
	}
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(r.publicIP, port)))
	if err != nil {
		return nil, err
	}
	return &plain{tun, conn}, nil
}

func (d *plain) forward(r *router) error {
	failed := make(chan error, 2)
	go func() { failed <- d.send(r) }()
	go func() { failed <- d.receive(r) }()
	return <-failed
}

func (d *plain) send(r *router) error {
	b := make([]byte, r.mtu)
	for {
		n, err := d.tun.Read(b)
		if err != nil {
			return fmt.Errorf("read from %s: %w", deviceName, err)
		}
		if !hop(b[:n]) {
			continue
		}
		if to, ok := r.route(b[:n]); ok {
			if _, err := d.conn.WriteToUDPAddrPort(b[:n], netip.AddrPortFrom(to, port)); err == nil {
				r.sent.Add(1)
			}
		}
	}
}

func (d *plain) receive(r *router) error {
	b := make([]byte, r.mtu)
	for {
		n, _, err := d.conn.ReadFromUDPAddrPort(b)
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		if !hop(b[:n]) {
			continue
		}
		if _, err := d.tun.Write(b[:n]); err == nil {
			r.received.Add(1)
		}
	}
}
