package pmtu_test

import (
	"testing"
	"time"

	"github.com/tulle-net/tulle/dataplane/pmtu"
)

// FuzzSearch answers, refuses and loses probes at will, late and twice, with the ceiling
// moving. The MTU stays within its bounds and becomes only what an answer proved or the
// ceiling demands, nothing is due again at once, and a search never starves.
func FuzzSearch(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 2, 3})
	f.Add([]byte{0, 60, 0, 60, 0, 60, 5, 10, 0, 60, 1, 0, 1, 1, 1, 2, 1, 3, 0, 60, 1, 0})
	f.Add([]byte{0, 60, 1, 0, 3, 200, 0, 10, 2, 0, 2, 0, 2, 0, 0, 60, 4, 17, 0, 200, 0, 60, 0, 250, 1, 3})
	f.Add([]byte{0, 0, 1, 1, 0, 0, 0, 0, 1, 5, 4, 60, 0, 0, 0, 0, 0, 0}) // the ceiling falls in a doubt
	f.Fuzz(func(t *testing.T, data []byte) {
		const floor = 576
		ceiling, now := 1450, time.Duration(0)
		search := pmtu.New(pmtu.Config{}, floor, ceiling, now)
		var sent []pmtu.Probe
		answered := map[int]bool{}
		for ; len(data) >= 2; data = data[2:] {
			op, arg := data[0]%5, int(data[1])
			before := search.MTU()
			switch op {
			case 0:
				now = max(now, search.Next())
				sent = append(sent, search.Due(now)...)
				if search.Next() <= now || search.Next() > now+10*s {
					t.Fatalf("at %v, due again at %v", now, search.Next())
				}
			case 1, 2:
				if len(sent) == 0 {
					continue
				}
				p := sent[max(len(sent)-1-arg, 0)]
				if op == 1 {
					answered[p.Size] = true
					search.Answered(p.Seq, now)
				} else {
					search.Refused(p.Seq, now)
				}
			case 3:
				now += time.Duration(arg) * ms
				continue
			case 4:
				ceiling = 500 + arg*10
				search.SetCeiling(ceiling, now)
			}
			after := search.MTU()
			if after > ceiling || after < min(floor, ceiling, before) {
				t.Fatalf("MTU %d outside %d to %d", after, min(floor, ceiling), ceiling)
			}
			if after != before && after != ceiling && !answered[after] {
				t.Fatalf("MTU from %d to %d, a size never answered", before, after)
			}
			if after > before && op != 1 {
				t.Fatalf("MTU from %d to %d without an answer", before, after)
			}
		}
	})
}
