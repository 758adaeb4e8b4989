package result

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// A Profile is where the daemons' CPU time goes in a case.
type Profile struct {
	Underlay string  `json:"underlay"`
	Path     string  `json:"path"`
	Case     string  `json:"case"`
	Busy     float64 `json:"busy"`    // CPUs of the machine that computed, on average, the generator's among them
	Daemons  float64 `json:"daemons"` // of these, the daemons'
	Parts    []Part  `json:"parts"`   // the largest first
}

// A Part is one of the things that a daemon does.
type Part struct {
	Name   string  `json:"name"`
	Share  float64 `json:"share"`  // of the daemons' CPU time
	Kernel float64 `json:"kernel"` // of the part, what is in system calls
}

// Sort puts the largest part first.
func (p *Profile) Sort() {
	slices.SortFunc(p.Parts, func(a, b Part) int { return cmp.Or(cmp.Compare(b.Share, a.Share), cmp.Compare(a.Name, b.Name)) })
}

// Text is the profile in a line.
func (p *Profile) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%.1f CPUs busy, %.1f of them the daemons'", p.Busy, p.Daemons)
	for i, part := range p.Parts {
		if part.Share < 0.005 {
			continue
		}
		fmt.Fprintf(&b, "%s %s %.0f%%", map[bool]string{true: ":", false: ","}[i == 0], part.Name, 100*part.Share)
		if part.Kernel >= 0.005 {
			fmt.Fprintf(&b, " (kernel %.0f%%)", 100*part.Share*part.Kernel)
		}
	}
	return b.String()
}

// explained are the profiles of cases of which a verdict is short of its aim, in lines.
func (r *Result) explained(all []Verdict) (lines []string) {
	for i := range r.Profiles {
		p := &r.Profiles[i]
		for _, v := range all {
			short := v.State == Missed || v.State == Met || v.State == Reported && v.Aim > 0
			if short && v.Path == p.Path && v.Underlay == p.Underlay && strings.HasPrefix(v.Name, p.Case) {
				lines = append(lines, fmt.Sprintf("%s, %s on %s: %s", Explain(p.Case), r.title(p.Path), p.Underlay, p.Text()))
				break
			}
		}
	}
	return lines
}

// explanation introduces the lines of explained.
const explanation = "Cases that are short of an aim, in the first round. Shares are of the daemons' CPU time; what they spend inside system calls is in brackets."
