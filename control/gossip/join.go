package gossip

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"
)

const (
	defaultPort = 7946
	// aloneRetry paces the search of a node that knows nobody: it shall find the others within 2 s of their start.
	aloneRetry = 500 * time.Millisecond
	// rejoinMin to rejoinMax paces the search for those who are missing: memberlist never heals a partition that
	// outlasted its memory of the dead, 30 s. rejoinEach is added for each node that is there: the more of them search, the less each has to.
	rejoinMin, rejoinMax, rejoinEach = 1500 * time.Millisecond, 10 * time.Second, 250 * time.Millisecond
	// joinsAtOnce bounds the dials of one round: a large network with many dead nodes is not searched through at once.
	joinsAtOnce = 8
	// A node that hears of more than floodNews new records a second exchanges everything with another one each floodPause, until it heard of
	// less for floodRounds.
	floodNews, floodPause, floodRounds = 32, time.Second, 4
	floodEach                          = time.Millisecond // is added for each node, since everything is so much
)

// parseSeed splits host[:port].
func parseSeed(s string) (host string, port uint16, err error) {
	host, text, err := net.SplitHostPort(s)
	if err != nil { // no port
		if a, err := netip.ParseAddr(s); err == nil {
			return a.String(), defaultPort, nil
		}
		if host, _, err = net.SplitHostPort(s + ":1"); err != nil {
			return "", 0, fmt.Errorf("--join %q: an address with or without a port is needed", s)
		}
		text = strconv.Itoa(defaultPort)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 || host == "" {
		return "", 0, fmt.Errorf("--join %q: an address with or without a port is needed", s)
	}
	return host, uint16(n), nil
}

// rejoin looks for missing nodes until ctx ends. It is the only one who joins.
func (s *Store) rejoin(ctx context.Context) {
	for {
		s.joinRound(ctx, s.targets(ctx))
		s.mu.Lock()
		s.joined, s.dirty = true, true
		pause := rejoinPause(s.liveLocked())
		if s.flood > 0 || s.news > floodNews {
			pause = min(pause, floodPause+rand.N(floodPause/2)+time.Duration(len(s.known))*floodEach)
		}
		s.mu.Unlock()
		s.poke()
		select {
		case <-time.After(pause):
		case <-s.hurry:
		case <-ctx.Done():
			return
		}
	}
}

// targets returns where missing nodes may be: seeds, and endpoints of nodes that were alive or are known as dead.
func (s *Store) targets(ctx context.Context) []netip.AddrPort {
	var found []netip.AddrPort
	for _, seed := range s.config.Join {
		found = append(found, s.resolve(ctx, seed)...)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	others := slices.Clone(s.kept)
	live := map[netip.AddrPort]bool{s.endpoint: true}
	for _, r := range s.known {
		switch {
		case r.ID == s.id:
		case s.lives.alive(r):
			live[r.Endpoint] = true
		case !r.Leaving():
			others = append(others, r.Endpoint)
		}
	}
	rand.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
	var targets []netip.AddrPort
	for _, at := range append(found, others...) {
		if !live[at] && len(targets) < joinsAtOnce {
			live[at] = true
			targets = append(targets, at)
		}
	}
	if at, ok := s.exchangeLocked(); ok {
		targets = append(targets, at)
	}
	for at := range s.joinProblems {
		if !slices.Contains(targets, at) {
			delete(s.joinProblems, at)
		}
	}
	return targets
}

func (s *Store) resolve(ctx context.Context, seed string) []netip.AddrPort {
	host, port, err := parseSeed(seed)
	if err != nil { // Open refused it
		return nil
	}
	network := "ip4" // the socket is of one family
	if s.endpoint.Addr().Is6() {
		network = "ip6"
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, network, host)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.seedProblems, seed)
	if err != nil && ctx.Err() == nil {
		s.seedProblems[seed] = fmt.Sprintf("join %s: %v", seed, err)
	}
	var found []netip.AddrPort
	for _, a := range addrs {
		found = append(found, netip.AddrPortFrom(a.Unmap(), port))
	}
	return found
}

// joinRound tries all targets at once and returns when each is decided.
func (s *Store) joinRound(ctx context.Context, targets []netip.AddrPort) {
	var tries sync.WaitGroup
	for _, at := range targets {
		tries.Go(func() {
			_, err := s.list.Join([]string{at.String()})
			if ctx.Err() == nil {
				s.joinEnded(at, err)
			}
		})
	}
	tries.Wait()
}

// joinEnded notes how the try ended. A node that merely does not answer is a problem only as long as nobody does.
func (s *Store) joinEnded(at netip.AddrPort, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.joinProblems, at)
	s.dirty = true
	if err == nil {
		s.joined = true
		s.poke()
		return
	}
	reason, words := joinFailure(err)
	if reason != "" {
		s.refusals.add(reason, fmt.Sprintf("join %s: %s", at, words), s.now())
	}
	s.joinProblems[at] = joinProblem{fmt.Sprintf("join %s: %s", at, words), reason != "" || words == closedThere}
	s.config.Log.Debug("gossip: join failed", "at", at, "err", err)
}

// A joinProblem is why a node could not be joined.
type joinProblem struct {
	words   string
	refused bool // there is a node, and it refuses
}

// rejoinPause is how long a node waits before it searches again, when it sees so many others.
func rejoinPause(live int) time.Duration {
	pause := aloneRetry
	if live > 0 {
		pause = min(rejoinMin+time.Duration(live)*rejoinEach, rejoinMax)
	}
	return pause + rand.N(pause/2)
}

// exchangeLocked returns a live node to exchange everything with, if there are more news than packets carry in time, as when all nodes
// start at once: with each such round twice as many nodes know a thing, where packets, which hold three records, would need minutes.
func (s *Store) exchangeLocked() (at netip.AddrPort, ok bool) {
	now := s.now()
	if passed := max(now-s.counted, floodPause); float64(s.news) > floodNews*passed.Seconds() {
		s.flood = max(s.flood, floodRounds)
	} else if s.flood > 0 {
		s.flood--
	}
	s.news, s.counted = 0, now
	if s.flood == 0 {
		return at, false
	}
	for _, r := range s.known { // in random order
		if r.ID != s.id && s.lives.alive(r) {
			return r.Endpoint, true
		}
	}
	return at, false
}

func (s *Store) liveLocked() (live int) {
	for _, r := range s.known {
		if r.ID != s.id && s.lives.alive(r) {
			live++
		}
	}
	return live
}
