package claim

import (
	"maps"
	"net/netip"
	"time"
)

// A Holding is what is known of a block.
type Holding struct {
	Claim
	State      string // of the claim, or quarantine for a block that nobody claims
	Node       NodeID // zero for quarantine
	Owner      bool
	Quarantine time.Duration // that is left
}

// Survey lists every claim that is known, and every block in quarantine.
func (m *Machine) Survey() (all []Holding) {
	resting := map[netip.Prefix]time.Duration{}
	for _, block := range m.Fences.quarantined(m.quarantine) {
		resting[block] = m.quarantine - m.Fences[block].Served
	}
	claimed := map[netip.Prefix]bool{}
	valid := NewIndex(m.Holdings(maps.Values(m.Known)))
	for id, r := range m.Known {
		for _, c := range r.Claims {
			h := Holding{Claim: c, State: c.State.String(), Node: id, Quarantine: resting[c.Block]}
			if c.State != Released && m.Fences.Dead(c) {
				h.State = "ended by a fence"
			} else {
				h.Owner = Owner(c.Block, valid.Overlapping(c.Block)).Of == r
			}
			claimed[c.Block] = true
			all = append(all, h)
		}
	}
	for block, left := range resting {
		if !claimed[block] {
			all = append(all, Holding{Claim: Claim{Block: block, Fence: m.Fences[block].Number}, State: "quarantine", Quarantine: left})
		}
	}
	return all
}

func (s claimState) String() string {
	if int(s) < len(claimStates) {
		return claimStates[s]
	}
	return "of a kind that this version does not know"
}

var claimStates = []string{"tentative", "confirmed", "released"}
