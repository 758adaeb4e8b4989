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

// peer is an entry of the daemons' --peers file: flannel's lease fields and the subnet.
type peer struct {
	Name        string      `json:"name"`
	PublicIP    string      `json:"publicIP"`
	Subnet      string      `json:"subnet"`
	BackendType string      `json:"backendType"`
	BackendData backendData `json:"backendData"`
}

type backendData struct {
	VNI     int
	VtepMAC string
}

// writeFiles writes what the daemons share: the configuration, and the key unless they have no use for one.
func (l *Lab) writeFiles(ctx context.Context) error {
	conf := fmt.Sprintf("{\"Network\":%q,\"Backend\":{\"Type\":\"vxlan\",\"VNI\":%d,\"Port\":%d}}\n", network, vxlanVNI, vxlanPort)
	if err := os.WriteFile(netConfPath(l.dir), []byte(conf), 0o644); err != nil {
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
			peers = append(peers, peer{Name: n.name(), PublicIP: n.PublicIP.String(), Subnet: n.Subnet.String(),
				BackendType: "vxlan", BackendData: backendData{VNI: vxlanVNI, VtepMAC: n.VtepMAC}})
		}
	}
	if l.rec.StaticPeers {
		if err := writeChanged(peersPath(l.dir), peers); err != nil {
			return err
		}
	}
	for _, n := range l.rec.Nodes {
		if n.Kernel && n.known() {
			if err := programKernelNode(n, l.rec.Nodes); err != nil {
				return err
			}
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
