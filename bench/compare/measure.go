package compare

import (
	"context"
	"net"
	"net/netip"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/bench/result"
	"github.com/tulle-net/tulle/scripts/lab"
)

// This is the path of Measure in results.
const This = "this"

// End is a namespace of this machine, and the address there.
type End struct {
	Namespace string
	Addr      netip.Addr
}

// Between is the path between two namespaces.
func Between(from, to End) (bench.Ends, error) {
	client, server, err := pinned()
	if err != nil {
		return bench.Ends{}, err
	}
	return bench.Ends{Client: from.place(client), Server: to.place(server)}, nil
}

func (e End) place(cpu int) bench.Place {
	return bench.Place{Addr: e.Addr, CPU: cpu, In: func(f func() error) error { return lab.In(e.Namespace, f) }}
}

// To is the path to a server on another machine, which serves at addr.
func To(ctx context.Context, addr string) (bench.Ends, error) {
	client, _, err := pinned()
	if err != nil {
		return bench.Ends{}, err
	}
	return bench.Dial(ctx, addr, client)
}

// Serve is the server for To, until ctx ends.
func Serve(ctx context.Context, l net.Listener) error {
	_, server, err := pinned()
	if err != nil {
		return err
	}
	return bench.Serve(ctx, l, server)
}

// Measure measures a path that somebody else made, and in each round the generator. Of the plan and the options only what has nothing
// to do with labs counts.
func Measure(ctx context.Context, p Plan, title string, ends bench.Ends, o Options) (*result.Result, error) {
	o.Family = lab.FamilyV4
	if ends.Server.Addr.Is6() {
		o.Family = lab.FamilyV6
	}
	r, err := newRun(p, o)
	if err != nil {
		return nil, err
	}
	r.out.Reference = Bare
	r.out.Paths = []result.Path{{Name: Bare, Title: Paths[0].Title}, {Name: This, Title: title}}
	for round := 1; round <= p.Rounds; round++ {
		bare, err := r.generator(ctx, round)
		if err != nil {
			return nil, err
		}
		s := r.session(round, "", Path{Name: This})
		s.bare, s.ends = bare, ends
		if err := r.measure(ctx, s); err != nil {
			return nil, err
		}
	}
	return r.out, nil
}
