package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tulle-net/tulle/scripts/lab"
)

// labStatus is the JSON of `tulle lab status`.
type labStatus struct {
	SchemaVersion int        `json:"schemaVersion"`
	Dir           string     `json:"dir"`
	Created       time.Time  `json:"created"`
	MTU           int        `json:"mtu"`
	PodMTU        int        `json:"podMTU"`
	Family        string     `json:"family"`
	Backend       string     `json:"backend"`
	Store         string     `json:"store"`
	Router        *labRouter `json:"router,omitempty"` // only of a routed lab
	Nodes         []labNode  `json:"nodes"`
}

type labRouter struct {
	Namespace string   `json:"namespace"`
	Addrs     []string `json:"addrs"` // one on each segment, of each family
}

type labNode struct {
	Name      string   `json:"name"`
	Namespace string   `json:"namespace"`
	Kernel    bool     `json:"kernel"`
	RunDir    string   `json:"runDir,omitempty"`
	Log       string   `json:"log,omitempty"`
	PID       int      `json:"pid"`
	Alive     bool     `json:"alive"`
	Subnet    string   `json:"subnet"` // empty while the daemon has none, and in a lab without IPv4, as publicIP
	PublicIP  string   `json:"publicIP"`
	VtepMAC   string   `json:"vtepMAC"`
	IPv6      *labIPv6 `json:"ipv6,omitempty"` // only of a lab with IPv6
	Command   []string `json:"command"`
	Pods      []labPod `json:"pods"`
}

type labIPv6 struct {
	Subnet   string `json:"subnet"`
	PublicIP string `json:"publicIP"`
	VtepMAC  string `json:"vtepMAC"`
}

type labPod struct {
	Namespace string `json:"namespace"`
	Addr      string `json:"addr"` // empty in a lab without IPv4
	Addr6     string `json:"addr6,omitempty"`
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
	s = labStatus{SchemaVersion: 1, Dir: l.Dir(), Created: l.Created(), MTU: l.MTU(), PodMTU: l.PodMTU(),
		Family: l.Family(), Backend: l.Backend(), Store: l.Store(), Nodes: []labNode{}}
	if addrs := l.Router(); addrs != nil {
		s.Router = &labRouter{Namespace: lab.RouterNamespace}
		for _, a := range addrs {
			s.Router.Addrs = append(s.Router.Addrs, a.String())
		}
	}
	for _, n := range l.Nodes() {
		v := labNode{Name: n.Name, Namespace: n.Namespace, Kernel: n.Kernel, RunDir: n.RunDir, Log: n.LogFile, PID: n.PID,
			Alive: n.Alive, Subnet: text(n.Subnet), PublicIP: text(n.PublicIP), VtepMAC: n.VtepMAC,
			Command: append([]string{}, n.Args...), Pods: []labPod{}}
		if n.PublicIPv6.IsValid() {
			v.IPv6 = &labIPv6{Subnet: text(n.IPv6Subnet), PublicIP: text(n.PublicIPv6), VtepMAC: n.VtepMACv6}
		}
		for _, p := range n.Pods {
			v.Pods = append(v.Pods, labPod{p.Namespace, text(p.Addr), text(p.Addr6)})
		}
		if !n.Kernel && !n.Alive {
			dead = append(dead, n.Name)
		}
		s.Nodes = append(s.Nodes, v)
	}
	return s, dead
}

// subnetsOf lists what a node has, for people.
func subnetsOf(n lab.Node) string { return joined(text(n.Subnet), text(n.IPv6Subnet)) }

// joined puts commas between those that are not empty.
func joined(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), ",")
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
		case n.Kernel && s.Backend == lab.BackendUDP:
			daemon = "none (flannelpeer)"
		case n.Kernel:
			daemon = "none (kernel VXLAN)"
		case !n.Alive:
			daemon = "dead"
		}
		ip, subnet := n.PublicIP, n.Subnet
		if n.IPv6 != nil {
			ip, subnet = joined(ip, n.IPv6.PublicIP), joined(subnet, n.IPv6.Subnet)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", n.Namespace, ip, subnet, daemon, n.RunDir)
		for _, p := range n.Pods {
			fmt.Fprintf(t, "%s\t%s\t\t\t\n", p.Namespace, joined(p.Addr, p.Addr6))
		}
	}
	return t.Flush()
}
