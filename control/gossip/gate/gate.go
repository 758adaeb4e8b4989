// Package gate owns what stands between the sockets and memberlist: label and encryption of packets and streams, and what is refused
// before memberlist sees it, each under one name. On the wire it is memberlist's own format (v0.7.0: label.go, security.go, encryption
// version 1), so that nodes without a gate understand it.
//
// The reason is that memberlist panics over some of what a holder of the key may send (an empty encrypted stream, padding of encryption
// version 0), expands whatever claims to be compressed, and says in log lines alone what it refuses. A recover does not help: those are
// goroutines of its own. Behind the gate memberlist runs without keys and label and gets plaintext that was checked.
//
// It never looks into what the nodes tell each other, and decides nothing about members.
package gate

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Reasons to refuse something.
const (
	Key         = "key"         // cannot be decrypted, plaintext where encryption is on, or the reverse
	Network     = "network"     // another label
	Truncated   = "truncated"   // ends, or does not go on, before it is whole
	Replayed    = "replayed"    // was here before, byte for byte
	Oversized   = "oversized"   // larger than any that a node sends
	Compressed  = "compressed"  // no node compresses, and little can become much
	Malformed   = "malformed"   // empty, nested, or of a kind that there is not
	Connections = "connections" // too many from one address
)

// Reasons lists them.
func Reasons() []string {
	return []string{Key, Network, Truncated, Replayed, Oversized, Compressed, Malformed, Connections}
}

// A Config says what a Gate lets through.
type Config struct {
	Label   string   // of this network, not empty
	Keys    *Keyring // nil: nothing is encrypted
	Refused func(reason, words string)
}

// A Gate is a memberlist transport over another one. New makes it, Shutdown ends it and the one below.
type Gate struct {
	memberlist.NodeAwareTransport
	config  Config
	packets chan *memberlist.Packet
	streams chan net.Conn
	done    chan struct{}
	ends    sync.Once
	err     error
	loops   sync.WaitGroup
	seen    seen
	sources sources
}

// Overhead is how many bytes the gate adds to each packet.
func (c Config) Overhead() int {
	if c.Keys == nil {
		return 2 + len(c.Label)
	}
	return 2 + len(c.Label) + sealOverhead
}

// New begins to let through.
func New(inner memberlist.NodeAwareTransport, c Config) *Gate {
	g := &Gate{NodeAwareTransport: inner, config: c, packets: make(chan *memberlist.Packet), streams: make(chan net.Conn), done: make(chan struct{})}
	g.loops.Go(g.takePackets)
	g.loops.Go(g.takeStreams)
	return g
}

func (g *Gate) PacketCh() <-chan *memberlist.Packet { return g.packets }
func (g *Gate) StreamCh() <-chan net.Conn           { return g.streams }

// Shutdown may be called again.
func (g *Gate) Shutdown() error {
	g.ends.Do(func() {
		g.err = g.NodeAwareTransport.Shutdown() // hands over what it has until then
		close(g.done)
		g.loops.Wait()
	})
	return g.err
}

func (g *Gate) takePackets() {
	for {
		select {
		case p := <-g.NodeAwareTransport.PacketCh():
			plain, no := g.unwrap(p.Buf)
			if no != nil {
				g.refuse(no, p.From)
				continue
			}
			p.Buf = plain
			select {
			case g.packets <- p:
			case <-g.done:
			}
		case <-g.done:
			return
		}
	}
}

func (g *Gate) takeStreams() {
	for {
		select {
		case c := <-g.NodeAwareTransport.StreamCh():
			from := addrOf(c.RemoteAddr())
			if no := g.sources.enter(from, time.Now()); no != nil {
				g.refuse(no, c.RemoteAddr())
				c.Close()
				continue
			}
			in := &stream{Conn: c, gate: g, left: func() { g.sources.leave(from) }}
			select {
			case g.streams <- in:
			case <-g.done:
				in.Close()
			}
		case <-g.done:
			return
		}
	}
}

// A refusal is why something is not let through.
type refusal struct{ reason, words string }

func (r *refusal) Error() string { return r.words }

func refused(reason, format string, args ...any) *refusal {
	return &refusal{reason, fmt.Sprintf(format, args...)}
}

func (g *Gate) refuse(no *refusal, from net.Addr) {
	g.config.Refused(no.reason, fmt.Sprintf("the node at %s: %s", addrOf(from), no.words))
}

func addrOf(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap()
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

func (g *Gate) WriteTo(b []byte, addr string) (time.Time, error) {
	return g.WriteToAddress(b, memberlist.Address{Addr: addr})
}

func (g *Gate) WriteToAddress(b []byte, to memberlist.Address) (time.Time, error) {
	return g.NodeAwareTransport.WriteToAddress(g.wrap(b), to)
}

func (g *Gate) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return g.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

func (g *Gate) DialAddressTimeout(to memberlist.Address, timeout time.Duration) (net.Conn, error) {
	c, err := g.NodeAwareTransport.DialAddressTimeout(to, timeout)
	if err != nil {
		return nil, err
	}
	return &stream{Conn: c, gate: g, dialed: true, left: func() {}}, nil
}
