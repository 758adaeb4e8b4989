package main

import (
	"fmt"
	"log/slog"

	"github.com/tulle-net/tulle/control/netfilter"
)

// chooseMode decides what becomes of traffic between pods and the world outside of the cluster network. A kernel without nftables
// can do what needs nothing of it.
func (c *daemonConfig) chooseMode(masquerade bool) error {
	c.mode = netfilter.Mode(c.conf.Mode)
	if masquerade {
		if c.mode != netfilter.Unset && c.mode != netfilter.Island {
			return usageError("--ip-masq with Mode %s of net-conf.json: that mode masquerades nothing: leave out one of the two", c.mode)
		}
		c.mode = netfilter.Island
	}
	err := netfilter.Probe()
	if err == nil {
		return nil
	}
	if c.mode == netfilter.Isolated || c.mode == netfilter.Island {
		return fmt.Errorf("mode %s: %w", c.mode, err)
	}
	slog.Warn("pods are not let through a FORWARD chain that drops", "reason", err)
	c.noNetfilter = true
	return nil
}
