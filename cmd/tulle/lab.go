package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
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
	c.AddCommand(newLabUpCommand(&dir), newLabAddCommand(&dir), newLabRemoveCommand(&dir), newLabExecCommand(), newLabStatusCommand(&dir), newLabDownCommand(&dir))
	return c
}

// oneValue is a flag that has one value today.
type oneValue struct{ name, supported, value string }

func (v *oneValue) check() error {
	if v.value != v.supported {
		return usageError("tulle lab up: --%s %s: not supported (have: %s)", v.name, v.value, v.supported)
	}
	return nil
}

func newLabUpCommand(dir *string) *cobra.Command {
	var config lab.Config
	var kernel []int
	ones := []*oneValue{{name: "backend", supported: "vxlan"}, {name: "underlay", supported: "udp"},
		{name: "device", supported: "tap"}, {name: "family", supported: "v4"}}
	c := &cobra.Command{
		Use:   "up --nodes N --pods M",
		Short: "build a lab and start its daemons",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			for _, v := range ones {
				if err := v.check(); err != nil {
					return err
				}
			}
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
	f.IntVar(&config.MTU, "mtu", lab.DefaultMTU, "MTU of the underlay, bytes; pods have 50 less")
	f.StringVar(&config.Store, "store", lab.StoreGossip, "where nodes learn of each other: gossip, or file (fixed subnets and one list of peers)")
	f.BoolVar(&config.Routed, "routed", false, "put even nodes on an underlay segment of their own, behind a router")
	f.IntSliceVar(&kernel, "kernel", nil, "numbers of nodes that are a kernel VXLAN device, set up as flannel's, without daemon")
	for _, v := range ones {
		f.StringVar(&v.value, v.name, v.supported, "only "+v.supported+" today")
	}
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
			fmt.Fprintf(c.ErrOrStderr(), "node %s is up with %s: all nodes know each other %v after its start\n", n.Name, n.Subnet,
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

// labStatus is the JSON of `tulle lab status`.
type labStatus struct {
	SchemaVersion int        `json:"schemaVersion"`
	Dir           string     `json:"dir"`
	Created       time.Time  `json:"created"`
	MTU           int        `json:"mtu"`
	Store         string     `json:"store"`
	Router        *labRouter `json:"router,omitempty"` // only of a routed lab
	Nodes         []labNode  `json:"nodes"`
}

type labRouter struct {
	Namespace string   `json:"namespace"`
	Addrs     []string `json:"addrs"` // one on each segment
}

type labNode struct {
	Name      string   `json:"name"`
	Namespace string   `json:"namespace"`
	Kernel    bool     `json:"kernel"`
	RunDir    string   `json:"runDir,omitempty"`
	Log       string   `json:"log,omitempty"`
	PID       int      `json:"pid"`
	Alive     bool     `json:"alive"`
	Subnet    string   `json:"subnet"` // empty while the daemon has none
	PublicIP  string   `json:"publicIP"`
	VtepMAC   string   `json:"vtepMAC"`
	Command   []string `json:"command"`
	Pods      []labPod `json:"pods"`
}

type labPod struct {
	Namespace string `json:"namespace"`
	Addr      string `json:"addr"`
}

func newLabStatusCommand(dir *string) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "status",
		Short: "say what the lab consists of and whether its daemons live",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return usageError("tulle lab status: -o %s: no such format (have: table, json)", output)
			}
			l, err := openLab("tulle lab status", *dir)
			if err != nil {
				return err
			}
			return printLabStatus(c.OutOrStdout(), l, output)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return c
}

func printLabStatus(w io.Writer, l *lab.Lab, output string) error {
	s, dead := readLabStatus(l)
	var err error
	if output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		err = e.Encode(s)
	} else {
		err = s.table(w)
	}
	if err != nil {
		return fmt.Errorf("tulle lab status: %w", err)
	}
	if len(dead) > 0 {
		return &exitError{exitUnhealthy, fmt.Errorf("tulle lab status: no daemon runs on %s: see its log in %s",
			strings.Join(dead, ", "), l.Dir())}
	}
	return nil
}

func readLabStatus(l *lab.Lab) (s labStatus, dead []string) {
	s = labStatus{SchemaVersion: 1, Dir: l.Dir(), Created: l.Created(), MTU: l.MTU(), Store: l.Store(), Nodes: []labNode{}}
	if addrs := l.Router(); addrs != nil {
		s.Router = &labRouter{Namespace: lab.RouterNamespace}
		for _, a := range addrs {
			s.Router.Addrs = append(s.Router.Addrs, a.String())
		}
	}
	for _, n := range l.Nodes() {
		v := labNode{Name: n.Name, Namespace: n.Namespace, Kernel: n.Kernel, RunDir: n.RunDir, Log: n.LogFile, PID: n.PID,
			Alive: n.Alive, PublicIP: n.PublicIP.String(), VtepMAC: n.VtepMAC,
			Command: append([]string{}, n.Args...), Pods: []labPod{}}
		if n.Subnet.IsValid() {
			v.Subnet = n.Subnet.String()
		}
		for _, p := range n.Pods {
			v.Pods = append(v.Pods, labPod{p.Namespace, p.Addr.String()})
		}
		if !n.Kernel && !n.Alive {
			dead = append(dead, n.Name)
		}
		s.Nodes = append(s.Nodes, v)
	}
	return s, dead
}

func (s labStatus) table(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAMESPACE\tADDRESS\tSUBNET\tDAEMON\tRUN DIR")
	if s.Router != nil {
		fmt.Fprintf(t, "%s\t%s\t\tnone (router)\t\n", s.Router.Namespace, strings.Join(s.Router.Addrs, ","))
	}
	for _, n := range s.Nodes {
		daemon := fmt.Sprintf("process %d", n.PID)
		switch {
		case n.Kernel:
			daemon = "none (kernel VXLAN)"
		case !n.Alive:
			daemon = "dead"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", n.Namespace, n.PublicIP, n.Subnet, daemon, n.RunDir)
		for _, p := range n.Pods {
			fmt.Fprintf(t, "%s\t%s\t\t\t\n", p.Namespace, p.Addr)
		}
	}
	return t.Flush()
}
