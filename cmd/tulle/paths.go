package main

import (
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/tulle-net/tulle/dataplane/pmtu"
)

// live counts the paths that carry traffic. p.mu is held.
func (p *prober) live() (n int) {
	for _, path := range p.paths {
		if path.carries(p.now()) {
			n++
		}
	}
	return n
}

// carries says whether there was traffic a short while ago, in either direction.
func (p *path) carries(now time.Duration) bool {
	last, ok := p.activity.Carried()
	return ok && now-last < liveFor
}

// restInterval is the time between two probes of a path without traffic, of so many.
func restInterval(paths int) time.Duration {
	return max(probeInterval, time.Duration(paths)*probeBudget)
}

// pace chooses the time between two probes: paths with traffic share the budget among themselves, and all have it as before.
func (p *path) pace(now time.Duration, paths, live int) {
	interval := restInterval(paths)
	if p.carries(now) {
		interval = max(liveInterval, time.Duration(live)*probeBudget)
	}
	if interval != p.interval {
		p.interval = interval
		p.search.SetInterval(interval, now)
	}
}

// patience is for three probes that were due and are lost, the last of which had twice its time, and for three of the peer's that did not come:
// it probes as many paths as this node, about.
func (p *path) patience(paths int) pmtu.Patience {
	_, rtt := p.search.RTT()
	return pmtu.Patience{Answers: 3*p.interval + min(max(2*rtt, 100*time.Millisecond), 500*time.Millisecond), Quiet: 3 * restInterval(paths)}
}

// judge finds out whether the path is dead, and says it when that has changed.
func (p *path) judge(now time.Duration, patience pmtu.Patience) {
	before, _ := p.watch.State()
	heard, ok := p.activity.Heard()
	if !ok {
		heard = -time.Hour
	}
	if after := p.watch.Judge(now, heard, patience); after != before {
		slog.Warn("path is dead", "peer", p.peer.Name, "endpoint", p.peer.Endpoint.Addr(), "state", after, "reason", p.reason(now))
	}
}

// alive notes an answer, and says it when the path was dead.
func (p *path) alive(now time.Duration) {
	before, since := p.watch.State()
	p.watch.Answered(now)
	if before.Dead() {
		slog.Info("path is alive again", "peer", p.peer.Name, "endpoint", p.peer.Endpoint.Addr(), "after", now-since)
	}
}

// reason says why packets do not get to the peer and back, "" when they do or when nobody knows.
func (p *path) reason(now time.Duration) string {
	state, _ := p.watch.State()
	last, ok := p.search.LastAnswer()
	if !state.Dead() || !ok {
		return ""
	}
	unanswered := fmt.Sprintf("probes to %s are not answered for %s", p.peer.Endpoint.Addr(), (now - last).Round(10*time.Millisecond))
	if state == pmtu.OneWay {
		return "one-way: " + unanswered + ", though packets come from there: what is sent to it is lost"
	}
	return "silent: " + unanswered + ", and nothing comes from there"
}

// A pathReport is what is measured of the path to one outer address of a peer.
type pathReport struct {
	To        string   `json:"to"`                        // the outer address
	MTU       int      `json:"mtu"`                       // largest inner packet that arrives in one piece, bytes
	Answering bool     `json:"answering"`                 // probes are answered; without that the MTU is the link's
	RTTMillis *float64 `json:"rttMilliseconds,omitempty"` // smoothed; absent until a probe was answered
	Loss      float64  `json:"loss"`                      // of the last probes that fit, 0 to 1

	State        string   `json:"state"`                  // up, one-way, silent, or unproven while no probe was answered
	StateSeconds float64  `json:"stateSeconds"`           // for so long
	HeardSeconds *float64 `json:"heardSeconds,omitempty"` // since the peer was heard by this path; absent if it never was
	Reason       string   `json:"reason,omitempty"`       // why packets do not get through, in words
}

// reports returns what is known of the paths to a peer's outer addresses.
func (p *prober) reports(outer ...netip.Addr) []pathReport {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []pathReport
	for _, addr := range outer {
		if path := p.paths[addr]; path != nil {
			all = append(all, path.report(addr, p.now()))
		}
	}
	return all
}

func (p *path) report(to netip.Addr, now time.Duration) pathReport {
	s := p.search
	r := pathReport{To: to.String(), MTU: p.inForce, Answering: s.Answering()}
	if lost, of := s.Loss(); of > 0 {
		r.Loss = float64(lost) / float64(of)
	}
	if _, rtt := s.RTT(); rtt > 0 {
		ms := float64(rtt) / float64(time.Millisecond)
		r.RTTMillis = &ms
	}
	state, since := p.watch.State()
	r.State, r.StateSeconds, r.Reason = state.String(), max(0, now-since).Seconds(), p.reason(now)
	if heard, ok := p.activity.Heard(); ok {
		ago := max(0, now-heard).Seconds()
		r.HeardSeconds = &ago
	}
	return r
}
