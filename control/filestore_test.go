package control_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/control/storetest"
)

// A network is nodes that share a peers file, which grows with each of them: a list for all nodes.
type network struct {
	path    string
	entries []string
	known   map[int]bool
}

func (n *network) Open(t *testing.T, i int) control.Store {
	ip := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
	self := control.Node{Name: fmt.Sprintf("n%d", i), PublicIP: ip, BackendType: "vxlan", VNI: 1, VTEP: control.VTEPMAC(ip, 1), Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i)}), 24)}
	if !n.known[i] {
		n.known[i] = true
		n.entries = append(n.entries, fmt.Sprintf(`{"name": %q, "publicIP": %q, "subnet": %q, "backendType": "vxlan", "backendData": {"VNI": 1, "VtepMAC": %q}}`, self.Name, ip, self.Subnet, self.VTEP))
		if err := os.WriteFile(n.path, []byte("["+strings.Join(n.entries, ",\n")+"]"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	peers, err := control.LoadPeers(n.path)
	if err != nil {
		t.Fatal(err)
	}
	return control.NewFileStore(self, n.path, peers)
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Network {
		return &network{path: filepath.Join(t.TempDir(), "peers.json"), known: map[int]bool{}}
	})
}
