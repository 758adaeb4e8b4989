package ipam

import (
	"fmt"
	"net/netip"
)

// A Port is one of the node's that leads to a port of a pod. A lease has it alone.
type Port struct {
	Protocol string     `json:"protocol"`
	Host     netip.Addr `json:"host,omitzero"` // of the node; 0.0.0.0 and :: are for all of a family, the zero Addr for all
	Number   uint16     `json:"number"`
	Pod      uint16     `json:"pod"`
}

func (p Port) String() string {
	if !p.Host.IsValid() {
		return fmt.Sprintf("%d/%s", p.Number, p.Protocol)
	}
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(p.Host, p.Number), p.Protocol)
}

// overlaps says whether a packet could be for both.
func (p Port) overlaps(o Port) bool {
	if p.Protocol != o.Protocol || p.Number != o.Number {
		return false
	}
	if !p.Host.IsValid() || !o.Host.IsValid() || p.Host == o.Host {
		return true
	}
	return p.Host.Is4() == o.Host.Is4() && (p.Host.IsUnspecified() || o.Host.IsUnspecified())
}

// checkPorts says which of the ports in a lease is another one's, or its own twice.
func (t *table) checkPorts(l Lease) error {
	for i, p := range l.Ports {
		for _, twin := range l.Ports[:i] {
			if p.overlaps(twin) {
				return fmt.Errorf("%s: %w twice for %s", p, ErrPort, l.Owner)
			}
		}
		for _, other := range t.leases {
			for _, taken := range other.Ports {
				if p.overlaps(taken) {
					return fmt.Errorf("%s: %w to %s already, as %s", p, ErrPort, other.Owner, taken)
				}
			}
		}
	}
	return nil
}
