package control

import (
	"log/slog"
	"reflect"

	"github.com/tulle-net/tulle/control/netfilter"
)

// rules remembers at which generation of the kernel's nftables they were found to be what they have to be: there is nothing to compare
// as long as the kernel counts no change of any of them, whoever made it.
type rules struct{ seen map[string]seenRules }

type seenRules struct {
	generation uint32
	want       any
}

// unlessSeen applies what some rules have to be, unless that was found to be so at the present generation. It works without r.
func (r *rules) unlessSeen(name string, want any, apply func() (bool, error)) (changed bool, err error) {
	if r == nil {
		return apply()
	}
	generation, err := netfilter.Generation() // before the comparison: a change meanwhile has the next one
	if err != nil {
		slog.Debug("nftables: generation not known; everything is compared each time", "error", err)
		return apply()
	}
	if s, ok := r.seen[name]; ok && s.generation == generation && reflect.DeepEqual(s.want, want) {
		return false, nil
	}
	if changed, err = apply(); err == nil && !changed {
		r.seen[name] = seenRules{generation, want}
	}
	return changed, err
}
