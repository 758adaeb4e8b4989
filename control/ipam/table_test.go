package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// A model is an allocator as slow as it is plain: for each pool the list of all addresses that pods may have, walked from the
// one behind the last that was handed out.
type model struct {
	held map[Owner][]netip.Addr
	last map[int]netip.Addr
}

// usable lists a pool's addresses for pods.
func usable(p Pool) (all []netip.Addr) {
	for a := p.Subnet.Addr(); p.Subnet.Contains(a); a = a.Next() {
		if !slices.Contains(p.Reserved, a) {
			all = append(all, a)
		}
	}
	return all
}

func (m *model) taken(a netip.Addr) bool {
	for _, addrs := range m.held {
		if slices.Contains(addrs, a) {
			return true
		}
	}
	return false
}

// turn lists a pool's addresses in the order in which they are tried.
func (m *model) turn(p Pool) []netip.Addr {
	all, last := usable(p), m.last[family(p.Subnet.Addr())]
	if !p.Subnet.Contains(last) {
		return all
	}
	i := 0
	for i < len(all) && !last.Less(all[i]) {
		i++
	}
	return slices.Concat(all[i:], all[:i])
}

// allocate returns nil when the allocator must refuse.
func (m *model) allocate(o Owner, static []netip.Addr, pools []Pool) (got []netip.Addr) {
	if m.held[o] != nil || len(pools) == 0 {
		return nil
	}
	moved, used := map[int]netip.Addr{}, 0
	for _, p := range pools {
		candidates := m.turn(p)
		i := slices.IndexFunc(static, p.Subnet.Contains)
		if i >= 0 {
			used++
			candidates = []netip.Addr{static[i]}
		}
		j := slices.IndexFunc(candidates, func(a netip.Addr) bool { return !m.taken(a) && slices.Contains(usable(p), a) })
		if j < 0 {
			return nil
		}
		got = append(got, candidates[j])
		if i < 0 {
			moved[family(got[0])], moved[family(candidates[j])] = moved[family(got[0])], candidates[j]
		}
	}
	if used != len(static) {
		return nil
	}
	for f, a := range moved {
		if a.IsValid() {
			m.last[f] = a
		}
	}
	m.held[o] = got
	return got
}

// pool reserves what the daemon does: the first two addresses and the last two.
func pool(prefix string) Pool {
	p := Pool{Subnet: netip.MustParsePrefix(prefix)}
	all := usable(p)
	p.Reserved = []netip.Addr{all[0], all[1], all[len(all)-2], all[len(all)-1]}
	return p
}

// TestModel does random things with the allocator and the model: both give the same addresses and refuse the same.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		choices := [][]Pool{
			{pool("10.0.0.0/28")}, {pool("10.0.1.0/29")}, {pool("10.0.0.0/30")}, {pool("fd00::/124")}, {pool("10.0.0.0/28"), pool("fd00::/125")}, nil,
		}
		var real table
		m := &model{held: map[Owner][]netip.Addr{}, last: map[int]netip.Addr{}}
		pools := choices[0]
		owner := rapid.Custom(func(t *rapid.T) Owner {
			return Owner{"net", fmt.Sprint("c", rapid.IntRange(0, 20).Draw(t, "container")), "eth0"}
		})
		t.Repeat(map[string]func(*rapid.T){
			"other subnet": func(t *rapid.T) { pools = rapid.SampledFrom(choices).Draw(t, "pools") },
			"allocate": func(t *rapid.T) {
				o := owner.Draw(t, "owner")
				var static []netip.Addr
				if rapid.IntRange(0, 3).Draw(t, "static") == 0 {
					for _, p := range pools {
						all := usable(Pool{Subnet: p.Subnet})
						static = append(static, rapid.SampledFrom(append(all, p.Subnet.Addr().Prev())).Draw(t, "addr"))
					}
				}
				got, err := real.allocate(Lease{Owner: o, Addrs: static}, pools)
				held := m.held[o] != nil
				want := m.allocate(o, static, pools)
				if (want == nil) != (err != nil) || errors.Is(err, ErrHeld) != held || err == nil && !slices.Equal(got.Addrs, want) {
					t.Fatalf("static %v of %v: %v, %v, want %v", static, pools, got.Addrs, err, want)
				}
			},
			"free": func(t *rapid.T) {
				o := owner.Draw(t, "owner")
				l, ok := real.free(o)
				if !slices.Equal(l.Addrs, m.held[o]) || ok != (m.held[o] != nil) {
					t.Fatalf("freed %v, %t, want %v", l.Addrs, ok, m.held[o])
				}
				delete(m.held, o)
			},
			"": func(t *rapid.T) {
				if len(real.leases) != len(m.held) {
					t.Fatalf("%d leases, want %d", len(real.leases), len(m.held))
				}
				addrs := 0
				for o, want := range m.held {
					addrs += len(want)
					if !slices.Equal(real.leases[o].Addrs, want) {
						t.Fatalf("%v has %v, want %v", o, real.leases[o].Addrs, want)
					}
				}
				if len(real.owners) != addrs {
					t.Fatalf("%d addresses taken, want %d", len(real.owners), addrs)
				}
			},
		})
	})
}

// TestNoReuse frees each address at once: none comes back before all others were handed out.
func TestNoReuse(t *testing.T) {
	var real table
	p := pool("10.1.2.0/24")
	var seen []netip.Addr
	for i := range 2 * len(usable(p)) {
		o := Owner{"net", fmt.Sprint(i), "eth0"}
		l, err := real.allocate(Lease{Owner: o}, []Pool{p})
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, l.Addrs[0])
		real.free(o)
	}
	if want := usable(p); !slices.Equal(seen[:len(want)], want) || !slices.Equal(seen[len(want):], want) {
		t.Errorf("handed out %v", seen)
	}
	if len(usable(p)) != 252 {
		t.Errorf("%d addresses in a /24", len(usable(p)))
	}
}

// TestRefusals tells the errors apart.
func TestRefusals(t *testing.T) {
	var real table
	p := []Pool{pool("10.0.0.0/29")} // .2 to .5
	lease := func(name string, static ...string) Lease {
		l := Lease{Owner: Owner{"net", name, "eth0"}}
		for _, s := range static {
			l.Addrs = append(l.Addrs, netip.MustParseAddr(s))
		}
		return l
	}
	for _, c := range []struct {
		want  Lease
		pools []Pool
		err   error
	}{
		{lease("none"), nil, ErrFull},
		{lease("first"), p, nil},
		{lease("first"), p, ErrHeld},
		{lease("static", "10.0.0.4"), p, nil},
		{lease("taken", "10.0.0.2"), p, ErrTaken},
		{lease("taken", "10.0.0.4"), p, ErrTaken},
		{lease("tunnel", "10.0.0.0"), p, ErrForeign},
		{lease("engine", "10.0.0.6"), p, ErrForeign},
		{lease("outside", "10.0.1.3"), p, ErrForeign},
		{lease("two", "10.0.0.3", "10.0.0.5"), p, ErrForeign},
		{lease("v6", "fd00::5"), p, ErrForeign},
		{lease("third"), p, nil},
		{lease("fourth"), p, nil},
		{lease("fifth"), p, ErrFull},
	} {
		if _, err := real.allocate(c.want, c.pools); !errors.Is(err, c.err) {
			t.Errorf("%s %v: %v, want %v", c.want.Container, c.want.Addrs, err, c.err)
		}
	}
}
