package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tulle-net/tulle/control/netconf"
)

func newConfigCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check a net-conf.json",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "check FILE",
		Short: "Say what tulle node would say about a net-conf.json, without starting",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError("%s: one file is needed", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			conf, warnings, err := netconf.Load(args[0])
			for _, w := range warnings {
				fmt.Fprintln(cmd.ErrOrStderr(), w)
			}
			if err == nil {
				err = runnable(args[0], conf)
			}
			if err != nil {
				return fmt.Errorf("tulle config check: %w", err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s, backend %s\n", args[0], describeNetworks(conf), conf.Backend.Type)
			return nil
		},
	})
	return cmd
}

// runnable refuses what is right for flannel but not in this version.
func runnable(file string, conf *netconf.Config) error {
	switch t := conf.Backend.Type; {
	case t != netconf.TypeVXLAN && t != netconf.TypeUDP && t != netconf.TypeHostGW:
		return fmt.Errorf("%s: Backend.Type %s: this version runs vxlan, udp and host-gw only", file, t)
	case t == netconf.TypeUDP && conf.EnableIPv6:
		return fmt.Errorf("%s: EnableIPv6 is true: the udp backend carries IPv4 only: choose Backend.Type vxlan (flannel means udp when Type is absent)", file)
	}
	return nil
}

// describeNetworks says which networks and node subnets a configuration has.
func describeNetworks(conf *netconf.Config) string {
	var parts []string
	if conf.EnableIPv4 {
		parts = append(parts, fmt.Sprintf("Network %s, node subnets /%d from %s to %s", conf.Network, conf.SubnetLen, conf.SubnetMin, conf.SubnetMax))
	}
	if conf.EnableIPv6 {
		parts = append(parts, fmt.Sprintf("IPv6Network %s, node subnets /%d from %s to %s", conf.IPv6Network, conf.IPv6SubnetLen, conf.IPv6SubnetMin, conf.IPv6SubnetMax))
	}
	return strings.Join(parts, ", ")
}
