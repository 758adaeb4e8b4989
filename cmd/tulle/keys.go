package main

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// keysReport is what tulle keys list shows: the cluster keys that open messages here, newest first. The keys themselves are not in it.
type keysReport struct {
	SchemaVersion int         `json:"schemaVersion"`
	Rotating      bool        `json:"rotating"` // the newest is not used yet
	Keys          []keyReport `json:"keys"`
}

type keyReport struct {
	ID          string   `json:"id"`
	Rotation    uint64   `json:"rotation"`    // the number of the rotation that made it; 0: from the key file
	State       string   `json:"state"`       // spreading, used, or old
	LeftSeconds float64  `json:"leftSeconds"` // of an old one: until it opens nothing any more
	Nodes       int      `json:"nodes"`       // live ones that have it as their newest
	Without     []string `json:"without"`     // names of the live ones that do not
}

func (d *daemon) keys(context.Context) (*keysReport, error) {
	if d.gossip == nil {
		return nil, errNoGossip
	}
	all, err := d.gossip.Keys()
	if err != nil {
		return nil, err
	}
	r := &keysReport{SchemaVersion: schemaVersion, Keys: []keyReport{}}
	for _, k := range all {
		state := "spreading"
		if k.Old {
			state = "old"
		} else if k.Used {
			state = "used"
		}
		r.Rotating = r.Rotating || state == "spreading"
		r.Keys = append(r.Keys, keyReport{k.Tag, k.Number, state, k.Left.Seconds(), k.With, append([]string{}, k.Without...)})
	}
	return r, nil
}

func (d *daemon) rotateKeys(ctx context.Context, grace string) (*keysReport, error) {
	if d.gossip == nil {
		return nil, errNoGossip
	}
	length, err := time.ParseDuration(grace)
	if err == nil {
		err = checkGrace(length)
	}
	if err != nil {
		return nil, err
	}
	if err := d.gossip.Rotate(ctx, length); err != nil {
		return nil, err
	}
	return d.keys(ctx)
}

const maxGrace = 30 * 24 * time.Hour

func checkGrace(d time.Duration) error {
	if d < 0 || d > maxGrace {
		return fmt.Errorf("--grace %s: 0 to %s is possible", d, maxGrace)
	}
	return nil
}

// exportedKey is a cluster key as a key file has it.
type exportedKey struct {
	Key string `json:"key"`
}

func (d *daemon) exportKey(context.Context) (*exportedKey, error) {
	if d.gossip == nil {
		return nil, errNoGossip
	}
	key, err := d.gossip.ExportKey()
	if err != nil {
		return nil, err
	}
	return &exportedKey{base64.StdEncoding.EncodeToString(key)}, nil
}

func newKeysCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "keys", Short: "List, rotate and export the cluster keys", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	list := readingCommand("keys list", "Show the cluster keys, by ID: which is used, which still open messages, which nodes lack one", pathKeys, writeKeys)
	list.Use = "list"
	cmd.AddCommand(list, newRotateCommand(), newExportCommand())
	return cmd
}

func writeKeys(out io.Writer, r *keysReport) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprint(w, "KEY\tROTATION\tSTATE\tOPENS FOR\tNEWEST ON\tNOT ON\n")
	for _, k := range r.Keys {
		left, without := "-", "-"
		if k.State == "old" {
			left, without = cmp.Or(seconds(k.LeftSeconds), "0s"), "-"
		} else if len(k.Without) > 0 {
			without = strings.Join(k.Without, ",")
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%d\t%s\n", k.ID, k.Rotation, k.State, left, k.Nodes, without)
	}
	return w.Flush()
}

func newRotateCommand() *cobra.Command {
	var runDir, output string
	var grace, wait time.Duration
	cmd := &cobra.Command{
		Use: "rotate", Short: "Replace the cluster key on all nodes, without an outage", Args: noArgs,
		Long: `Replace the cluster key on all nodes, without an outage. A new key goes to every node over the gossip; each uses it once all live nodes
have it; the old one opens messages for --grace after that, so that a node that is away gets back in with it, and gets the new one. After that
a node that has the old key alone is refused: tulle keys export on another one gives what to write into its key file.

The new key travels under the old one. If that may be in wrong hands, write a key of tulle keygen into every key file instead, and restart.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return usageError("tulle keys rotate: -o %s: unknown format (allowed: table, json)", output)
			}
			if err := checkGrace(grace); err != nil {
				return usageError("tulle keys rotate: %s", err)
			}
			r, err := call[*keysReport](cmd.Context(), runDir, http.MethodPost, pathRotate+"?grace="+url.QueryEscape(grace.String()))
			if err == nil {
				r, err = awaitRotation(cmd.Context(), cmd.ErrOrStderr(), runDir, r, wait)
			}
			if err != nil {
				return fmt.Errorf("tulle keys rotate: %w", err)
			}
			if output == "json" {
				return writeJSON(cmd.OutOrStdout(), r)
			}
			return writeKeys(cmd.OutOrStdout(), r)
		},
	}
	cmd.Flags().DurationVar(&grace, "grace", 24*time.Hour, "how long the old key opens messages after the new one is used: how long a node may be away and still get in by itself")
	cmd.Flags().DurationVar(&wait, "wait", 2*time.Minute, "how long to wait until the new key is used; the rotation goes on by itself after that")
	cmd.Flags().StringVar(&runDir, "run-dir", defaultRunDir, "the daemon's run directory")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "format: table or json")
	return cmd
}

// awaitRotation says how far the rotation is, until the new key is used.
func awaitRotation(ctx context.Context, progress io.Writer, runDir string, r *keysReport, wait time.Duration) (*keysReport, error) {
	said := ""
	for deadline := time.Now().Add(wait); r.Rotating; time.Sleep(200 * time.Millisecond) {
		k := r.Keys[0]
		if now := fmt.Sprintf("%d of %d nodes have key %s", k.Nodes, k.Nodes+len(k.Without), k.ID); now != said {
			said = now
			fmt.Fprintln(progress, now)
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("after %s the new key is not used yet: %s do not have it; it is used as soon as they do, or are gone (tulle keys list)", wait, strings.Join(k.Without, ", "))
		}
		var err error
		if r, err = ask[*keysReport](ctx, runDir, pathKeys); err != nil {
			return nil, err
		}
		if len(r.Keys) == 0 {
			return nil, errors.New("the daemon has no keys")
		}
	}
	fmt.Fprintf(progress, "key %s is used; write it into the key files of all nodes: tulle keys export\n", r.Keys[0].ID)
	return r, nil
}

func newExportCommand() *cobra.Command {
	cmd := readingCommand("keys export", "Print the cluster key that is used, as a key file has it: it is a secret", pathExport, func(out io.Writer, k *exportedKey) error {
		_, err := fmt.Fprintln(out, k.Key)
		return err
	})
	cmd.Use = "export"
	return cmd
}
