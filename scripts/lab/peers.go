package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

func netConfPath(dir string) string { return filepath.Join(dir, "net-conf.json") }
func peersPath(dir string) string   { return filepath.Join(dir, "peers.json") }
func keyPath(dir string) string     { return filepath.Join(dir, "key") }

// peer is an entry of the daemons' --peers file: flannel's lease fields and the subnets.
type peer struct {
	Name          string       `json:"name"`
	PublicIP      string       `json:"publicIP,omitempty"`
	Subnet        string       `json:"subnet,omitempty"`
	PublicIPv6    string       `json:"publicIPv6,omitempty"`
	IPv6Subnet    string       `json:"ipv6Subnet,omitempty"`
	BackendType   string       `json:"backendType"`
	BackendData   *backendData `json:"backendData,omitempty"`
	BackendV6Data *backendData `json:"backendV6Data,omitempty"`
}

type backendData struct {
	VNI     int
	VtepMAC string
}

// netConf is flannel's configuration file.
type netConf struct {
	EnableIPv4, EnableIPv6 bool
	Network                string `json:",omitempty"`
	IPv6Network            string `json:",omitempty"`
	Backend                struct {
		Type string
		VNI  int `json:",omitempty"`
		Port int `json:",omitempty"`
	}
}

func (r *record) netConf() (c netConf) {
	for _, f := range r.families() {
		if f == ipv6 {
			c.EnableIPv6, c.IPv6Network = true, f.network().String()
		} else {
			c.EnableIPv4, c.Network = true, f.network().String()
		}
	}
	switch c.Backend.Type = r.Backend; r.Backend {
	case BackendVXLAN:
		c.Backend.VNI, c.Backend.Port = vxlanVNI, vxlanPort
	case BackendUDP:
		c.Backend.Port = udpPort
	}
	return c
}

// writeFiles writes what the daemons share: the configuration, and the key unless they have no use for one.
func (l *Lab) writeFiles(ctx context.Context) error {
	conf, err := json.Marshal(l.rec.netConf())
	if err != nil {
		return err
	}
	if err := os.WriteFile(netConfPath(l.dir), append(conf, '\n'), 0o644); err != nil {
		return err
	}
	if l.rec.Store != StoreGossip || l.rec.Executable == "" {
		return nil
	}
	key, err := l.rec.run(ctx, underlayNamespace, "keygen")
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	return os.WriteFile(keyPath(l.dir), key, 0o600)
}

// publishPeers tells of all nodes whom nobody else tells: the kernel nodes of everyone, and the daemons, through their
// peers file, of the kernel nodes or, in a lab on files, of everyone.
func (l *Lab) publishPeers() error {
	peers := []peer{}
	for _, n := range l.rec.Nodes {
		if n.known() && (n.Kernel || l.rec.Store == StoreFile) {
			peers = append(peers, l.rec.peerOf(n))
		}
	}
	if l.rec.StaticPeers {
		if err := writeChanged(peersPath(l.dir), peers); err != nil {
			return err
		}
	}
	for _, n := range l.rec.Nodes {
		if n.Kernel && n.known() {
			if err := l.programKernelNode(n); err != nil {
				return err
			}
		}
	}
	return nil
}

// peerOf is a node as the peers file has it.
func (r *record) peerOf(n *node) peer {
	p := peer{Name: n.name(), BackendType: r.Backend}
	for _, f := range r.families() {
		s := n.side(f)
		ip, subnet, data := &p.PublicIP, &p.Subnet, &p.BackendData
		if f == ipv6 {
			ip, subnet, data = &p.PublicIPv6, &p.IPv6Subnet, &p.BackendV6Data
		}
		*ip, *subnet = s.PublicIP.String(), s.Subnet.String()
		if r.Backend == BackendVXLAN {
			*data = &backendData{VNI: vxlanVNI, VtepMAC: s.VtepMAC}
		}
	}
	return p
}

// programKernelNode tells a kernel node of all others.
func (l *Lab) programKernelNode(n *node) error {
	if l.rec.Backend == BackendUDP {
		return l.programFlannel(n)
	}
	for _, f := range l.rec.families() {
		if err := l.rec.programVXLAN(n, f); err != nil {
			return err
		}
	}
	return nil
}

// writeChanged leaves a file alone that has the content already: a new one is news to the daemons.
func writeChanged(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(bytes.TrimSpace(old), b) {
		return nil
	}
	return writeJSON(path, v)
}
