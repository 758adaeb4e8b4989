package etcd

import (
	"testing"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/control/storetest"
)

// A network is nodes that share an etcd.
type network struct {
	*server
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
	storetest.Run(t, func(t *testing.T) storetest.Network { return &network{startServer(t), storetest.Dirs{}} })
}
