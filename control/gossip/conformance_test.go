package gossip

import (
	"testing"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/control/storetest"
)

// A network is nodes of one cluster.
type network struct {
	*cluster
	storetest.Dirs
}

func (n *network) Open(t *testing.T, i int) control.Store {
	c := n.config(i)
	c.StateDir = n.Of(t, i)
	s, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Network { return &network{newCluster(t), storetest.Dirs{}} })
}
