package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/tulle-net/tulle/scripts/lab"
)

func newLabCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "lab",
		Short: "nodes and pods in network namespaces of this machine",
		Long: `A lab is a pod network on one machine: nodes are the namespaces tulle-n1, tulle-n2 ..., pods of node i are
tulle-n<i>-p1, -p2 ...; each node runs a daemon of its own. The daemons find each other by gossip and claim their
subnets. The machine's own network is not touched.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError("tulle lab: no command %q (have: up, add, remove, exec, status, down)", args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.PersistentFlags().StringVar(&dir, "dir", lab.DefaultDir, "directory of the lab: its record, run directories, logs")
	c.AddCommand(newLabUpCommand(&dir), newLabAddCommand(&dir), newLabRemoveCommand(&dir), newLabExecCommand(),
		newLabStatusCommand(&dir), newLabDownCommand(&dir))
	return c
}

func newLabUpCommand(dir *string) *cobra.Command {
	var config lab.Config
	var kernel []int
	var underlay string
	c := &cobra.Command{
		Use:   "up --nodes N --pods M",
		Short: "build a lab and start its daemons",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if underlay != underlayUDP && underlay != underlayPacket {
				return usageError("tulle lab up: --underlay %s: unknown (allowed: udp, packet)", underlay)
			}
			config.NodeArgs = []string{"--underlay", underlay}
			config.Dir, config.Kernel, config.Progress = *dir, map[int]bool{}, c.ErrOrStderr()
			for _, number := range kernel {
				config.Kernel[number] = true
			}
			return labUp(c.Context(), config)
		},
	}
	f := c.Flags()
	f.IntVar(&config.Nodes, "nodes", 2, "number of nodes")
	f.IntVar(&config.Pods, "pods", 1, "number of pods on each node")
	f.IntVar(&config.MTU, "mtu", lab.DefaultMTU, "MTU of the underlay, bytes; pods have 50 less, 70 with IPv6, 28 with udp")
	f.StringVar(&config.Family, "family", lab.FamilyV4, "addresses of underlay and pods: v4, v6 or dual")
	f.StringVar(&config.Backend, "backend", lab.BackendVXLAN, "how packets get from node to node: vxlan, udp (flannel's), or host-gw (no tunnel, one segment)")
	f.StringVar(&config.Store, "store", lab.StoreGossip, "where nodes learn of each other: gossip, or file (fixed subnets and one list of peers)")
	f.StringVar(&config.Device, "device", lab.DeviceTAP, "what the daemons have towards their kernels: tap, tun or water")
	f.BoolVar(&config.Routed, "routed", false, "put even nodes on an underlay segment of their own, behind a router")
	f.IntSliceVar(&kernel, "kernel", nil,
		"numbers of nodes without daemon: kernel VXLAN devices, set up as flannel's, or with --backend udp a flannelpeer")
	f.StringVar(&config.FlannelPeer, "flannel-peer", "",
		"the flannelpeer binary (go build ./scripts/lab/flannelpeer), for --kernel with --backend udp")
	f.StringVar(&underlay, "underlay", underlayUDP, "sockets of the daemons that carry the tunnel: udp or packet")
	return c
}

func labUp(ctx context.Context, config lab.Config) error {
	if err := needRoot("tulle lab", "namespaces and links"); err != nil {
		return err
	}
	if err := config.Check(); err != nil {
		return usageError("tulle lab up: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("tulle lab up: %w", err)
	}
	config.Executable = self
	l, err := lab.Up(ctx, config)
	if err != nil {
		return fmt.Errorf("tulle lab up: %w", err)
	}
	fmt.Fprintf(config.Progress, "lab is up in %s; try: tulle lab exec tulle-n1 -- CMD\n", l.Dir())
	fmt.Fprintln(config.Progress, "to run a daemon by hand, stop it (kill; see tulle lab status) and repeat its command:")
	for _, n := range l.Nodes() {
		if !n.Kernel {
			fmt.Fprintln(config.Progress, "  "+shellLine(byHand(self, n)))
		}
	}
	return nil
}

// byHand is the command that starts a node's daemon as the lab did.
func byHand(self string, n lab.Node) []string {
	return append([]string{self, "lab", "exec", n.Namespace, "--"}, n.Args...)
}

// shellLine is argv for a POSIX shell.
func shellLine(argv []string) string {
	quoted := make([]string, len(argv))
	for i, a := range argv {
		if a == "" || strings.ContainsFunc(a, func(r rune) bool { return !strings.ContainsRune(shellPlain, r) }) {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		quoted[i] = a
	}
	return strings.Join(quoted, " ")
}

// shellPlain needs no quotes.
const shellPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=+:,./@%"

func newLabAddCommand(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "add",
		Short: "add a node with a daemon and pods to the lab",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			l, err := openLab("tulle lab add", *dir)
			if err != nil {
				return err
			}
			n, err := l.AddNode(c.Context())
			if err != nil {
				return fmt.Errorf("tulle lab add: %w", err)
			}
			fmt.Fprintf(c.ErrOrStderr(), "node %s is up with %s: all nodes know each other %v after its start\n", n.Name, subnetsOf(n),
				l.Converged().Round(time.Millisecond))
			return nil
		},
	}
}

func newLabRemoveCommand(dir *string) *cobra.Command {
	var crash bool
	c := &cobra.Command{
		Use:   "remove NODE",
		Short: "remove a node and its pods from the lab",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError("tulle lab remove: give one node, such as n2 (see: tulle lab status)")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			number, err := strconv.Atoi(strings.TrimPrefix(strings.TrimPrefix(args[0], "tulle-"), "n"))
			if err != nil {
				return usageError("tulle lab remove: %s is no node: give one such as n2 (see: tulle lab status)", args[0])
			}
			l, err := openLab("tulle lab remove", *dir)
			if err != nil {
				return err
			}
			sig := syscall.SIGTERM
			if crash {
				sig = syscall.SIGKILL
			}
			if err := l.RemoveNode(c.Context(), number, sig); err != nil {
				return fmt.Errorf("tulle lab remove: %w", err)
			}
			fmt.Fprintf(c.ErrOrStderr(), "node n%d is removed\n", number)
			return nil
		},
	}
	c.Flags().BoolVar(&crash, "crash", false, "kill the daemon, so that it cannot take its leave")
	return c
}

// openLab is for the commands that work on a lab that is up.
func openLab(command, dir string) (*lab.Lab, error) {
	if err := needRoot("tulle lab", "namespaces and links"); err != nil {
		return nil, err
	}
	l, err := lab.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", command, err)
	}
	return l, nil
}

func newLabExecCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "exec NAMESPACE -- CMD [ARG...]",
		Short: "run a command inside a node or a pod; its exit status is passed on",
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 && args[1] == "--" {
				args = append(args[:1:1], args[2:]...)
			}
			if len(args) < 2 {
				return usageError("tulle lab exec: give a namespace and a command: tulle lab exec tulle-n1-p1 -- CMD")
			}
			if err := needRoot("tulle lab", "namespaces and links"); err != nil {
				return err
			}
			err := lab.Exec(args[0], args[1:])
			if errors.Is(err, exec.ErrNotFound) {
				return usageError("tulle lab exec: %w", err)
			}
			return fmt.Errorf("tulle lab exec: %w; see: tulle lab status", err)
		},
	}
	c.Flags().SetInterspersed(false) // what follows the namespace is the command's
	return c
}

func newLabDownCommand(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "remove the lab: processes, namespaces, files",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := needRoot("tulle lab", "namespaces and links"); err != nil {
				return err
			}
			if err := lab.Down(*dir, c.ErrOrStderr()); err != nil {
				return fmt.Errorf("tulle lab down: %w", err)
			}
			return nil
		},
	}
}
