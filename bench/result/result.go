// Package result is what a benchmark leaves behind: figures with the trials and the machine that they are from, their statistics,
// the comparison with an older result, and the forms to read them in.
//
// It measures nothing. A Result is plain data and its JSON is stable within a SchemaVersion.
package result

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/bench/search"
)

// SchemaVersion is that of result.json: it changes when a field changes its meaning or goes.
const SchemaVersion = 1

// Flags of figures.
const (
	// GeneratorBound marks a figure too close to what the generator does over a bare veth to be the path's.
	GeneratorBound = "generator-bound"
	// GeneratorUntested marks a rate whose like the generator could not show over a bare veth.
	GeneratorUntested = "generator-untested"
	// Incomplete marks a search that ended before it was sure.
	Incomplete = "incomplete"
)

// Units, and with them which direction is better.
const (
	Gbps       = "Gb/s"
	PerSecond  = "pps"
	Transacts  = "tps"
	Nanosecond = "ns"
	CPUPacket  = "cpu-ns/packet"
	CPUGigabit = "cpu-s/Gb"
	PerOp      = "ns/op"
	PerFlow    = "B/flow"
	Allocs     = "allocs/packet"
	Bytes      = "B"
)

// HigherIsBetter says so of a unit.
func HigherIsBetter(unit string) bool { return unit == Gbps || unit == PerSecond || unit == Transacts }

// Result is one run of the benchmark.
type Result struct {
	SchemaVersion int         `json:"schemaVersion"`
	Created       time.Time   `json:"created"`
	Preset        string      `json:"preset"`
	Command       string      `json:"command,omitempty"` // that measured it
	Family        string      `json:"family"`
	Rounds        int         `json:"rounds"`
	Reference     string      `json:"reference"` // the path that ratios are to
	Environment   Environment `json:"environment"`
	Paths         []Path      `json:"paths"`
	Figures       []Figure    `json:"figures"`
	Trials        []Trial     `json:"trials"`
	Failures      []Failure   `json:"failures"`
	Profiles      []Profile   `json:"profiles,omitempty"`
	Curves        []Curve     `json:"curves,omitempty"` // from Go benchmarks
	Restarts      []Restarts  `json:"restarts,omitempty"`
}

// Path describes one thing compared.
type Path struct {
	Name  string `json:"name"`
	Title string `json:"title"`
}

// Figure is one value of one round.
type Figure struct {
	Round    int      `json:"round"`    // from 1
	Underlay string   `json:"underlay"` // empty where there is none
	Path     string   `json:"path"`
	Name     string   `json:"name"` // such as udp-64B/1-flow/no-drop
	Value    float64  `json:"value"`
	Unit     string   `json:"unit"`
	Flags    []string `json:"flags,omitempty"`
}

// limited says that the generator may have been the limit: the path does at least as well as the figure, and no ratio can be had
// of it.
func (f Figure) limited() bool {
	return slices.Contains(f.Flags, GeneratorBound) || slices.Contains(f.Flags, GeneratorUntested)
}

// Trial is raw. One of its results is there.
type Trial struct {
	Round    int                   `json:"round"`
	Underlay string                `json:"underlay"`
	Path     string                `json:"path"`
	Case     string                `json:"case"`
	UDP      *bench.UDPResult      `json:"udp,omitempty"`
	TCP      *bench.TCPResult      `json:"tcp,omitempty"`
	Transact *bench.TransactResult `json:"transact,omitempty"`
	Search   *search.Figure        `json:"search,omitempty"`
}

// Failure is a case that could not be measured.
type Failure struct {
	Round    int    `json:"round"`
	Underlay string `json:"underlay"`
	Path     string `json:"path"`
	Case     string `json:"case"`
	Error    string `json:"error"`
}

// Load reads a result.json.
func Load(path string) (*Result, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := new(Result)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if r.SchemaVersion != SchemaVersion {
		return nil, fmt.Errorf("read %s: schema version %d: this program reads %d", path, r.SchemaVersion, SchemaVersion)
	}
	return r, nil
}

// Save writes path in one step.
func (r *Result) Save(path string) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	if err := os.WriteFile(path+".tmp", append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// WriteLines writes JSON with a line for each figure: to be kept under version control.
func (r *Result) WriteLines(w io.Writer) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	figures, err := json.Marshal(r.Figures)
	if err != nil {
		return err
	}
	lines := bytes.ReplaceAll(figures, []byte(`},{"round"`), []byte("},\n{\"round\""))
	_, err = w.Write(append(bytes.Replace(b, figures, lines, 1), '\n'))
	return err
}

// Underlays lists those that figures have, in order of appearance.
func (r *Result) Underlays() []string {
	return distinct(r.Figures, func(f Figure) string { return f.Underlay })
}

// Names lists the names of the figures, in order of appearance.
func (r *Result) Names() []string {
	return distinct(r.Figures, func(f Figure) string { return f.Name })
}

// PathNames lists the paths that figures have, in the order of Paths.
func (r *Result) PathNames() (names []string) {
	have := distinct(r.Figures, func(f Figure) string { return f.Path })
	for _, p := range r.Paths {
		if slices.Contains(have, p.Name) {
			names = append(names, p.Name)
		}
	}
	for _, name := range have {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

func distinct(figures []Figure, key func(Figure) string) (keys []string) {
	seen := map[string]bool{}
	for _, f := range figures {
		if k := key(f); !seen[k] {
			seen[k], keys = true, append(keys, k)
		}
	}
	return keys
}
