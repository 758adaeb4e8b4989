package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

func netConfPath(dir string) string { return filepath.Join(dir, "net-conf.json") }
func peersPath(dir string) string   { return filepath.Join(dir, "peers.json") }

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

// writeNetConf writes the daemons' configuration and an empty list of peers: MACs are known only once the daemons run.
func (l *Lab) writeNetConf() error {
	conf := fmt.Sprintf("{\"Network\":%q,\"Backend\":{\"Type\":\"vxlan\",\"VNI\":%d,\"Port\":%d}}\n", network, vxlanVNI, vxlanPort)
	if err := os.WriteFile(netConfPath(l.rec.Dir), []byte(conf), 0o644); err != nil {
		return err
	}
	return writeJSON(peersPath(l.rec.Dir), []peer{})
}

// learnMACs waits for every daemon that runs and reads its VTEP's MAC.
func (l *Lab) learnMACs(ctx context.Context) error {
	for i := range l.rec.Nodes {
		n := &l.rec.Nodes[i]
		if n.Kernel || n.Daemon.PID == 0 {
			continue
		}
		err := l.await(ctx, n, "an answer to status", func(s status) bool {
			if s.Node.VtepMAC != "" {
				n.VtepMAC = s.Node.VtepMAC
			}
			return s.Node.VtepMAC != ""
		})
		if err != nil {
			return err
		}
	}
	return l.rec.save()
}

// publishPeers tells all nodes of all nodes.
func (l *Lab) publishPeers() error {
	peers := make([]peer, 0, len(l.rec.Nodes))
	for _, n := range l.rec.Nodes {
		peers = append(peers, peer{Name: n.name(), PublicIP: n.publicIP().String(), Subnet: n.subnet().String(),
			BackendType: "vxlan", BackendData: backendData{VNI: vxlanVNI, VtepMAC: n.VtepMAC}})
	}
	if err := writeJSON(peersPath(l.rec.Dir), peers); err != nil {
		return err
	}
	for _, n := range l.rec.Nodes {
		if n.Kernel {
			if err := programKernelNode(n, l.rec.Nodes); err != nil {
				return err
			}
		}
	}
	return nil
}

// awaitPeers waits until every daemon that runs knows all other nodes.
func (l *Lab) awaitPeers(ctx context.Context) error {
	want := len(l.rec.Nodes) - 1
	for i := range l.rec.Nodes {
		n := &l.rec.Nodes[i]
		if n.Kernel || n.Daemon.PID == 0 {
			continue
		}
		if err := l.await(ctx, n, fmt.Sprintf("%d peers", want), func(s status) bool { return len(s.Peers) == want }); err != nil {
			return err
		}
		fmt.Fprintf(l.progress, "node %s: daemon is up with %d peers (process %d)\n", n.name(), want, n.Daemon.PID)
	}
	return nil
}
