package control

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
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
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("subnet file: %w", err)
	}
	f, err := os.CreateTemp(dir, ".subnet.env-")
	if err != nil {
		return fmt.Errorf("subnet file: %w", err)
	}
	defer os.Remove(f.Name()) // gone after the rename
	_, err = f.WriteString(content)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("subnet file %s: %w", path, err)
	}
	return nil
}
