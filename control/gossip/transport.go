package gossip

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"
)

// listenSockets binds UDP and TCP at the address.
func listenSockets(ctx context.Context, at netip.AddrPort, logger *log.Logger) (memberlist.NodeAwareTransport, error) {
	inner, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{
		BindAddrs: []string{at.Addr().String()}, BindPort: int(at.Port()), Logger: logger,
	})
	if err != nil {
		return nil, bindError(at, err)
	}
	return &transport{inner, ctx, &net.TCPAddr{IP: at.Addr().AsSlice()}}, nil
}

func bindError(at netip.AddrPort, err error) error {
	if strings.Contains(err.Error(), "address already in use") {
		return fmt.Errorf("gossip at %s: the port is taken, most likely by another tulle node: stop that one, or give --gossip-port", at)
	}
	return fmt.Errorf("gossip at %s: %w", at, err)
}

// A transport is memberlist's own, but that its connections come from the node's public IP, which is how others name it in
// their refusals, and end with ctx.
type transport struct {
	*memberlist.NetTransport
	ctx   context.Context
	local *net.TCPAddr
}

func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: min(timeout, dialTimeout), LocalAddr: t.local}
	c, err := d.DialContext(t.ctx, "tcp", a.Addr)
	if err != nil {
		return nil, err
	}
	return &boundConn{c, context.AfterFunc(t.ctx, func() { c.Close() })}, nil
}

// A boundConn closes when its context ends.
type boundConn struct {
	net.Conn
	release func() bool
}

func (c *boundConn) Close() error {
	c.release()
	return c.Conn.Close()
}
