package gossip

import (
	"testing"
	"time"
)

// TestReclaimAfter demands that each boot's machine knows the time after which it takes subnets away.
func TestReclaimAfter(t *testing.T) {
	c := newCluster(t)
	cfg := c.config(1)
	cfg.ReclaimAfter = 3 * time.Hour
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got := s.machine.ReclaimAfter; got != cfg.ReclaimAfter {
		t.Errorf("%v, want %v", got, cfg.ReclaimAfter)
	}
}
