package result

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Restarts is what restarts of a node's daemon cost the traffic through it.
type Restarts struct {
	What            string          `json:"what"` // was done to the daemon
	Times           int             `json:"times"`
	Rate            int             `json:"rate"`   // datagrams a second that were meant to be sent
	Gaps            []time.Duration `json:"gapsNs"` // the longest of each flow in each restart
	Datagrams       int             `json:"datagrams"`
	Lost            int             `json:"lost"`
	Doubled         int             `json:"doubled"`
	Reordered       int             `json:"reordered"`
	Corrupt         int             `json:"corrupt"`
	Connections     int             `json:"connections"`
	ConnectionsLost int             `json:"connectionsLost"`
	Stall           time.Duration   `json:"stallNs"` // the longest in which nothing came on a connection
	Flows           int             `json:"flows"`
	FlowsKept       int             `json:"flowsKept"` // with their ID and creation time
	Processes       int             `json:"processes"` // different ones, the first included
	Builds          int             `json:"builds"`    // different binaries
}

// Gap is a percentile of the gaps.
func (r *Restarts) Gap(percent int) time.Duration {
	if len(r.Gaps) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(r.Gaps))
	return sorted[(len(sorted)-1)*percent/100].Round(time.Millisecond)
}

// Sum is the result in a line.
func (r *Restarts) Sum() string {
	return fmt.Sprintf("gap median %v, p99 %v, most %v; of %d datagrams %d lost, %d doubled, %d out of order, %d changed",
		r.Gap(50), r.Gap(99), r.Gap(100), r.Datagrams, r.Lost, r.Doubled, r.Reordered, r.Corrupt)
}

var restartColumns = []string{"Daemon", "times", "gap p50 / p99 / most", "datagrams", "lost", "doubled", "out of order", "TCP connections", "lost", "longest stall", "flows that kept ID and time", "builds"}

func (r *Restarts) texts() []string {
	return []string{
		r.What, fmt.Sprint(r.Times), fmt.Sprintf("%v / %v / %v", r.Gap(50), r.Gap(99), r.Gap(100)), fmt.Sprint(r.Datagrams), fmt.Sprint(r.Lost), fmt.Sprint(r.Doubled),
		fmt.Sprint(r.Reordered), fmt.Sprint(r.Connections), fmt.Sprint(r.ConnectionsLost), r.Stall.Round(time.Millisecond).String(), fmt.Sprintf("%d of %d", r.FlowsKept, r.Flows), fmt.Sprint(r.Builds),
	}
}

// restartRows are the table of restarts, its head first; nil without any.
func (r *Result) restartRows() (rows [][]string) {
	if len(r.Restarts) == 0 {
		return nil
	}
	rows = append(rows, restartColumns)
	for i := range r.Restarts {
		rows = append(rows, r.Restarts[i].texts())
	}
	return rows
}

const restartTitle = "Restarts under load"

// writeRestartTable writes them for a terminal.
func (r *Result) writeRestartTable(w io.Writer) error {
	rows := r.restartRows()
	if rows == nil {
		return nil
	}
	fmt.Fprintf(w, "\n%s\n", restartTitle)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for i, row := range rows {
		line := strings.Join(row, "\t")
		if i == 0 {
			line = strings.ToUpper(line)
		}
		fmt.Fprintln(t, line)
	}
	return t.Flush()
}

// writeRestarts writes them as a table of Markdown.
func (r *Result) writeRestarts(w io.Writer) error {
	for i, row := range r.restartRows() {
		if i == 0 {
			fmt.Fprintf(w, "\n## %s\n\n", restartTitle)
		}
		for _, cell := range row {
			fmt.Fprintf(w, "| %s ", cell)
		}
		fmt.Fprintln(w, "|")
		if i == 0 {
			for range row {
				fmt.Fprint(w, "|---")
			}
			fmt.Fprintln(w, "|")
		}
	}
	return nil
}
