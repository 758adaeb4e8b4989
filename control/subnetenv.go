package control

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/tulle-net/tulle/control/atomicfile"
)

// SubnetEnv returns the content of flannel's subnet.env for a node with a subnet (flannel v0.28,
// pkg/subnet/subnet.go): what the flannel CNI plugin reads. A family that the node does not have is left out.
func SubnetEnv(s State, ipMasq bool) string {
	var b strings.Builder
	prefixes, networks := [2]string{"FLANNEL_", "FLANNEL_IPV6_"}, s.networks()
	for i, h := range s.Self.halves() {
		if h.subnet.IsValid() {
			fmt.Fprintf(&b, "%sNETWORK=%s\n", prefixes[i], networks[i])
			fmt.Fprintf(&b, "%sSUBNET=%s\n", prefixes[i], netip.PrefixFrom(GatewayAddr(h.subnet), h.subnet.Bits()))
		}
	}
	fmt.Fprintf(&b, "FLANNEL_MTU=%d\n", s.MTU)
	fmt.Fprintf(&b, "FLANNEL_IPMASQ=%t\n", ipMasq)
	return b.String()
}

// WriteSubnetEnv puts content into the file in one step, so that a reader sees the old or the new file whole.
func WriteSubnetEnv(path, content string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("subnet file: %w", err)
	}
	if err := atomicfile.Write(path, []byte(content), 0o644); err != nil {
		return fmt.Errorf("subnet file: %w", err)
	}
	return nil
}
