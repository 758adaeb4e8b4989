package etcd

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/tulle-net/tulle/control"
)

// keyOf returns the last part of a lease's key: 10.5.1.0-24, with IPv6 10.5.1.0-24&fc00:0:0:1::-64 (flannel v0.28,
// pkg/subnet/subnet.go: MakeSubnetKey).
func keyOf(subnet, subnet6 netip.Prefix) string {
	key := part(subnet)
	if subnet6.IsValid() {
		key += "&" + part(subnet6)
	}
	return key
}

func part(p netip.Prefix) string { return p.Addr().String() + "-" + strconv.Itoa(p.Bits()) }

// parseKey is the inverse of keyOf.
func parseKey(key string) (subnet, subnet6 netip.Prefix, err error) {
	first, second, dual := strings.Cut(key, "&")
	if subnet, err = parsePart(first); err == nil && !subnet.Addr().Is4() {
		err = fmt.Errorf("%s is no IPv4 subnet", subnet)
	}
	if err == nil && dual {
		if subnet6, err = parsePart(second); err == nil && subnet6.Addr().Is4() {
			err = fmt.Errorf("%s is no IPv6 subnet", subnet6)
		}
	}
	if err != nil {
		return netip.Prefix{}, netip.Prefix{}, fmt.Errorf("key %q: %w (expected such as 10.5.1.0-24)", key, err)
	}
	return subnet, subnet6, nil
}

func parsePart(s string) (netip.Prefix, error) {
	addr, bits, ok := strings.Cut(s, "-")
	if !ok {
		return netip.Prefix{}, fmt.Errorf("%q has no length", s)
	}
	return netip.ParsePrefix(addr + "/" + bits)
}

// A lease is one key under subnets/.
type lease struct {
	key      string
	node     control.Node
	value    string
	revision int64 // of its last change; 0 if it is from disk
	id       int64 // of the etcd lease; 0 for a reservation, which never ends
}

// subnets returns those that the lease holds.
func (l *lease) subnets() []netip.Prefix {
	if l.node.IPv6Subnet.IsValid() {
		return []netip.Prefix{l.node.Subnet, l.node.IPv6Subnet}
	}
	return []netip.Prefix{l.node.Subnet}
}

// overlaps says whether the lease holds a part of a subnet.
func (l *lease) overlaps(p netip.Prefix) bool {
	for _, own := range l.subnets() {
		if own.Overlaps(p) {
			return true
		}
	}
	return false
}

// parseLease reads a key, without what all keys begin with, and its value.
func parseLease(key string, value []byte, revision, id int64) (*lease, error) {
	subnet, subnet6, err := parseKey(key)
	if err != nil {
		return nil, err
	}
	node, err := control.LeaseNode(subnet, subnet6, value)
	if err != nil {
		return nil, err
	}
	return &lease{key: key, node: node, value: string(value), revision: revision, id: id}, nil
}
