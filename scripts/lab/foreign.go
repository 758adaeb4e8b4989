package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// FlannelStatus is what the flannelpeer of a node has counted.
type FlannelStatus struct {
	Peers    int               `json:"peers"`    // that it has routes to
	Sent     uint64            `json:"sent"`     // packets
	Received uint64            `json:"received"` // packets
	NoRoute  uint64            `json:"noRoute"`
	Expired  uint64            `json:"expired"` // TTL at its end
	NotIPv4  uint64            `json:"notIPv4"` // datagrams whose payload was not one whole IPv4 packet
	Refused  uint64            `json:"refused"` // by the kernel
	Sources  map[string]uint64 `json:"sources"` // datagrams by the address:port that they came from
}

// flannelRoute is an entry of flannelpeer's file of peers.
type flannelRoute struct {
	PublicIP string `json:"publicIP"`
	Subnet   string `json:"subnet"`
}

func (n *node) flannelPeers(lab string) string  { return filepath.Join(n.dir(lab), "peers.json") }
func (n *node) flannelSocket(lab string) string { return filepath.Join(n.dir(lab), "socket") }

// startFlannel runs flannelpeer in a kernel node of a lab of BackendUDP and waits until it answers.
func (l *Lab) startFlannel(n *node) error {
	args := append(slices.Clone(l.rec.PeerArgs), "-network", ipv4.network().String(), "-subnet", n.V4.Subnet.String(),
		"-public-ip", n.V4.PublicIP.String(), "-mtu", strconv.Itoa(l.rec.podMTU()), "-peers", n.flannelPeers(l.dir),
		"-socket", n.flannelSocket(l.dir))
	daemon, _, err := l.launch(n, n.Number, l.rec.FlannelPeer, args)
	if err != nil {
		return err
	}
	if err := l.edit(func() { n.Daemon, n.Ready = daemon, true }); err != nil {
		return err
	}
	for end := time.Now().Add(commandWait); ; time.Sleep(pollEvery / 5) {
		if _, err = l.flannelStatus(n); err == nil {
			return nil
		}
		if !n.Daemon.alive() || time.Now().After(end) {
			return fmt.Errorf("node %s: flannelpeer does not answer: %w\n%s", n.name(), err, l.logTail(n))
		}
	}
}

// programFlannel tells a node's flannelpeer of all others. It has looked at its file before it answers.
func (l *Lab) programFlannel(n *node) error {
	if err := l.writeFlannelPeers(n); err != nil || !n.Daemon.running() {
		return err
	}
	_, err := l.flannelStatus(n)
	return err
}

func (l *Lab) writeFlannelPeers(n *node) error {
	routes := []flannelRoute{}
	for _, p := range l.rec.Nodes {
		if p != n && p.known() {
			routes = append(routes, flannelRoute{p.V4.PublicIP.String(), p.V4.Subnet.String()})
		}
	}
	return writeChanged(n.flannelPeers(l.dir), routes)
}

// FlannelStatus asks the flannelpeer of a node.
func (l *Lab) FlannelStatus(number int) (s FlannelStatus, err error) {
	l.mu.Lock()
	n, err := l.rec.find(number)
	l.mu.Unlock()
	if err != nil {
		return s, err
	}
	if l.Backend() != BackendUDP || !n.Kernel {
		return s, fmt.Errorf("node %s runs no flannelpeer", n.name())
	}
	return l.flannelStatus(n)
}

func (l *Lab) flannelStatus(n *node) (s FlannelStatus, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandWait)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", n.flannelSocket(l.dir))
	if err != nil {
		return s, fmt.Errorf("node %s: flannelpeer: %w", n.name(), err)
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	if err := errors.Join(c.SetDeadline(deadline), json.NewDecoder(c).Decode(&s)); err != nil {
		return s, fmt.Errorf("node %s: flannelpeer: %w", n.name(), err)
	}
	return s, nil
}
