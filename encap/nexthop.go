package encap

import (
	"net/netip"
	"sync/atomic"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// A NextHop is where frames for an outer address go first on the underlay's link.
type NextHop struct {
	MAC    packet.MAC // of the peer, or of the gateway before it
	Source packet.MAC // of the link
	MTU    int        // largest outer IP packet that goes there in one piece, bytes
}

// NextHops says where frames go, by outer address. What it does not hold is not sent to. The map is never changed
// after Publish: the ports load it once for each batch. The zero value is empty; all methods are safe for concurrent use.
type NextHops struct {
	current atomic.Pointer[map[netip.Addr]NextHop]
}

// Publish replaces everything that was known.
func (n *NextHops) Publish(hops map[netip.Addr]NextHop) { n.current.Store(&hops) }

func (n *NextHops) load() map[netip.Addr]NextHop {
	if hops := n.current.Load(); hops != nil {
		return *hops
	}
	return nil
}
