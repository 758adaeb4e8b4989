package gossip

import (
	"strings"
	"time"

	"github.com/tulle-net/tulle/control/gossip/gate"
)

// Reasons to refuse what another node sends, the keys of View.Refused beside those of the gate.
const (
	refusedKey       = gate.Key
	refusedNetwork   = gate.Network
	refusedName      = "name"      // a live node of another identity has the name
	refusedSignature = "signature" // a record that its node did not sign, or that is none
	refusedEndpoint  = "endpoint"  // a live node has the public IP, or a member is not where its record says
	refusedCloned    = "cloned"    // this node's identity is in use elsewhere
	refusedLimit     = "limit"     // more nodes than this one keeps track of
)

// Reasons lists the keys that View.Refused can have.
func Reasons() []string {
	return append(gate.Reasons(), refusedName, refusedSignature, refusedEndpoint, refusedCloned, refusedLimit)
}

// refusalShown is how long a refusal stays a problem after it happened last.
const refusalShown = time.Minute

// A refusal is what was refused for one reason.
type refusal struct {
	count uint64
	last  string // in words, with the address
	at    time.Duration
}

// refusals by reason. Not safe for concurrent use.
type refusals map[string]refusal

func (r refusals) add(reason, words string, now time.Duration) {
	r[reason] = refusal{r[reason].count + 1, words, now}
}

// joinFailure says in words why a node could not be joined, and the refusal reason if it is one ("" for a node
// that does not answer). A node that refuses says no more than it must: it closes.
func joinFailure(err error) (reason, words string) {
	text := err.Error()
	for _, c := range []struct{ part, reason, words string }{
		{"no installed keys could decrypt", refusedKey, "the node there has another cluster key: if keys were rotated while this node was away, tulle keys export on a node there gives the new one for --key-file"},
		{"encryption is configured but remote state is not encrypted", refusedKey, "the node there has no cluster key, this one has"},
		{"remote state is encrypted and encryption is not configured", refusedKey, "the node there has a cluster key, this one has none"},
		{"EOF", "", closedThere}, {"connection reset", "", closedThere}, {"broken pipe", "", closedThere},
		{"connection refused", "", "connection refused: no tulle node listens there"},
		{"i/o timeout", "", "no answer within " + streamTimeout.String()},
		{"no route to host", "", "no route to host"}, {"network is unreachable", "", "network is unreachable"},
	} {
		if strings.Contains(text, c.part) {
			return c.reason, c.words
		}
	}
	return "", strings.Join(strings.Fields(text), " ")
}

const closedThere = "connection closed by the node there: most likely another cluster key or another network; its tulle status has the reason"
