package compare

import (
	"context"
	"net/netip"

	"github.com/tulle-net/tulle/bench/result"
	"github.com/tulle-net/tulle/scripts/lab"
)

// This is the path of Measure in results.
const This = "this"

// End is one end of a path that somebody else made.
type End struct {
	Namespace string
	Addr      netip.Addr
}

// Measure measures the path between two namespaces, from the first to the second, and for each round the generator. Of the plan
// and the options only what has nothing to do with labs counts.
func Measure(ctx context.Context, p Plan, ends [2]End, o Options) (*result.Result, error) {
	o.Family = lab.FamilyV4
	if ends[0].Addr.Is6() {
		o.Family = lab.FamilyV6
	}
	r, err := newRun(p, o)
	if err != nil {
		return nil, err
	}
	r.out.Reference = Bare
	r.out.Paths = []result.Path{{Name: Bare, Title: Paths[0].Title}, {Name: This, Title: ends[0].Namespace + " to " + ends[1].Namespace}}
	for round := 1; round <= p.Rounds; round++ {
		bare, err := r.generator(ctx, round)
		if err != nil {
			return nil, err
		}
		s := r.session(round, "", Path{Name: This})
		s.bare = bare
		s.ends = r.ends(func(side int, f func() error) error { return lab.In(ends[side].Namespace, f) }, [2]netip.Addr{ends[0].Addr, ends[1].Addr})
		if err := r.measure(ctx, s); err != nil {
			return nil, err
		}
	}
	return r.out, nil
}
