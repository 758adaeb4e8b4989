package main

import (
	"fmt"

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
			fmt.Fprintf(cmd.OutOrStdout(), "%s: Network %s, node subnets /%d from %s to %s, backend %s\n", args[0], conf.Network, conf.SubnetLen, conf.SubnetMin, conf.SubnetMax, conf.Backend.Type)
			return nil
		},
	})
	return cmd
}

// runnable refuses what is right for flannel but not in this version.
func runnable(file string, conf *netconf.Config) error {
	switch {
	case conf.Backend.Type != netconf.TypeVXLAN:
		return fmt.Errorf("%s: Backend.Type %s: this version runs vxlan only (flannel means udp when Type is absent)", file, conf.Backend.Type)
	case !conf.EnableIPv4:
		return fmt.Errorf("%s: EnableIPv4 is false: this version runs IPv4 only", file)
	case conf.EnableIPv6:
		return fmt.Errorf("%s: EnableIPv6 is true: this version runs IPv4 only", file)
	}
	return nil
}
