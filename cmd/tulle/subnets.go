package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/control/etcd"
	"github.com/tulle-net/tulle/control/gossip"
)

// leastReclaim is what a machine may take to be repaired or restarted without a thought of its subnet.
const leastReclaim = time.Hour

// errNoGossip answers whoever asks a node with static peers alone for claims.
var errNoGossip = errors.New("this node has no gossip: its subnet and its peers are what --subnet and the peers file say")

// subnetsReport is what tulle subnets shows: every claim that this node knows of, and the blocks that rest.
type subnetsReport struct {
	SchemaVersion int            `json:"schemaVersion"`
	Subnets       []subnetReport `json:"subnets"`
}

type subnetReport struct {
	Block             netip.Prefix `json:"block"`
	Node              string       `json:"node,omitempty"` // none of a block in quarantine that nobody claims
	NodeID            string       `json:"nodeID,omitempty"`
	Live              string       `json:"live,omitempty"`    // of the node: alive, dead or left
	State             string       `json:"state"`             // confirmed, tentative, released, ended by a fence, or quarantine
	Owner             bool         `json:"owner"`             // the block is this node's, of all that claim it or a part of it
	TenureSeconds     float64      `json:"tenureSeconds"`     // confirmed time, as of the node's last record
	Fence             uint64       `json:"fence"`             //
	QuarantineSeconds float64      `json:"quarantineSeconds"` // left; 0 for none
}

func (d *daemon) subnets(context.Context) (*subnetsReport, error) {
	if d.config.store == storeEtcd {
		return d.leases(), nil
	}
	if d.gossip == nil {
		return nil, errNoGossip
	}
	r := &subnetsReport{SchemaVersion: schemaVersion, Subnets: []subnetReport{}}
	for _, s := range d.gossip.Subnets() {
		r.Subnets = append(r.Subnets, subnetReport{Block: s.Block, Node: s.Node, NodeID: s.NodeID, Live: s.Live, State: s.State, Owner: s.Owner,
			TenureSeconds: s.Tenure.Seconds(), Fence: s.Fence, QuarantineSeconds: s.Quarantine.Seconds()})
	}
	return r, nil
}

// leases lists what etcd has, a lease for each node.
func (d *daemon) leases() *subnetsReport {
	v := d.store.View()
	r := &subnetsReport{SchemaVersion: schemaVersion, Subnets: []subnetReport{}}
	add := func(n control.Node, state string) {
		for _, block := range []netip.Prefix{n.Subnet, n.IPv6Subnet} {
			if block.IsValid() {
				r.Subnets = append(r.Subnets, subnetReport{Block: block, Node: n.Name, State: state, Owner: true})
			}
		}
	}
	add(v.Self, etcd.Leased)
	for _, p := range v.Peers {
		add(p.Node, p.State)
	}
	slices.SortFunc(r.Subnets, func(a, b subnetReport) int { return a.Block.Addr().Compare(b.Block.Addr()) })
	return r
}

func newSubnetsCommand() *cobra.Command {
	return readingCommand("subnets", "Show all subnets: who claims, who owns, what is in quarantine", pathSubnets, writeSubnets)
}

func writeSubnets(out io.Writer, r *subnetsReport) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprint(w, "SUBNET\tNODE\tNODE IS\tCLAIM\tOWNER\tHELD FOR\tFENCE\tQUARANTINE\n")
	for _, s := range r.Subnets {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", s.Block, cmp.Or(s.Node, "-"), cmp.Or(s.Live, "-"), s.State,
			map[bool]string{true: "yes", false: "-"}[s.Owner], seconds(s.TenureSeconds), s.Fence, seconds(s.QuarantineSeconds))
	}
	return w.Flush()
}

func seconds(s float64) string {
	if s <= 0 {
		return "-"
	}
	return time.Duration(s * float64(time.Second)).Round(time.Second).String()
}

// blocksReport is what became of blocks that were taken or given back.
type blocksReport struct {
	Blocks            []netip.Prefix `json:"blocks"`
	QuarantineSeconds float64        `json:"quarantineSeconds"` // until they are free
}

func (r *blocksReport) text() string {
	if len(r.Blocks) == 0 {
		return "it had no subnet"
	}
	var all []string
	for _, b := range r.Blocks {
		all = append(all, b.String())
	}
	if r.QuarantineSeconds == 0 {
		return strings.Join(all, ", ") + ": free again"
	}
	return fmt.Sprintf("%s: free again in %s", strings.Join(all, ", "), seconds(r.QuarantineSeconds))
}

func released(blocks []netip.Prefix, err error) (*blocksReport, error) {
	if err != nil {
		return nil, err
	}
	return &blocksReport{blocks, gossip.Quarantine.Seconds()}, nil
}

func (d *daemon) forget(ctx context.Context, node string) (*blocksReport, error) {
	if d.config.store == storeEtcd {
		return nil, fmt.Errorf("%s: in etcd the lease of a node that is gone ends by itself, within a day: delete its key under %s/subnets/ to be faster", node, d.config.etcd.Prefix)
	}
	return onGossip(d, func(g *gossip.Store) (*blocksReport, error) { return released(g.Forget(ctx, node)) })
}

// leave gives the subnet back and ends the daemon.
func (d *daemon) leave(ctx context.Context) (*blocksReport, error) {
	if s, ok := d.store.(*etcd.Store); ok {
		self := s.View().Self
		s.Leave()
		time.AfterFunc(leaveDelay, d.stop)
		given := slices.DeleteFunc([]netip.Prefix{self.Subnet, self.IPv6Subnet}, func(p netip.Prefix) bool { return !p.IsValid() })
		return &blocksReport{Blocks: given}, nil
	}
	return onGossip(d, func(g *gossip.Store) (*blocksReport, error) {
		report, err := released(g.Release(ctx))
		if err == nil {
			time.AfterFunc(leaveDelay, d.stop)
		}
		return report, err
	})
}

// leaveDelay lets the answer out, and the others hear of it.
const leaveDelay = 300 * time.Millisecond

func onGossip(d *daemon, f func(*gossip.Store) (*blocksReport, error)) (*blocksReport, error) {
	if d.gossip == nil {
		return nil, errNoGossip
	}
	return f(d.gossip)
}

func newForgetCommand() *cobra.Command {
	var runDir string
	cmd := &cobra.Command{
		Use: "forget NODE", Short: "Take the subnet of a node away that is gone for good",
		Long: `Take the subnet of a node away that is gone for good, by its name or its ID. It is free again after a quarantine of ten minutes. Twice, or
on two nodes at once, is the same as once. A node that is alive is refused; one that comes back claims another subnet.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError("tulle forget: one node is needed, by name or ID: tulle peers lists them")
			}
			r, err := call[blocksReport](cmd.Context(), runDir, http.MethodPost, pathForget+"?node="+url.QueryEscape(args[0]))
			if err != nil {
				return fmt.Errorf("tulle forget: %w", err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "forgot %s: %s\n", args[0], r.text())
			return nil
		},
	}
	cmd.Flags().StringVar(&runDir, "run-dir", defaultRunDir, "the daemon's run directory")
	return cmd
}

func newLeaveCommand() *cobra.Command {
	var runDir string
	cmd := &cobra.Command{
		Use: "leave", Short: "Give this node's subnet back for good, and end its daemon", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := call[blocksReport](cmd.Context(), runDir, http.MethodPost, pathLeave)
			if err != nil {
				return fmt.Errorf("tulle leave: %w", err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "left: %s; the daemon ends\n", r.text())
			return nil
		},
	}
	cmd.Flags().StringVar(&runDir, "run-dir", defaultRunDir, "the daemon's run directory")
	return cmd
}
