package claim

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"testing"

	"pgregory.net/rapid"
)

func publicID(i int) NodeID { return IDOf(testKeys[i].Public().(ed25519.PublicKey)) }

// Letters come out as they went in; cut, flipped, or meant for somebody else they are refused.
func TestLetters(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := Request{By: publicID(0), Attempt: rapid.Uint64().Draw(t, "attempt"), Seq: rapid.Uint64().Draw(t, "seq"), Claim: genClaim(t)}
		if rapid.Bool().Draw(t, "dual") {
			q.Second = genClaim(t).Block
		}
		a := Answer{From: publicID(1), Attempt: q.Attempt, Verdict: rapid.SampledFrom([]Verdict{Abstain, Yes, No}).Draw(t, "verdict")}
		if a.Verdict == No {
			a.Holder, a.Of = genClaim(t), publicID(2)
		}
		asked, answered := q.Seal(testKeys[0]), a.Seal(publicID(0), testKeys[1])
		if got, _, err := OpenLetter(asked, publicID(1)); err != nil || *got != q {
			t.Fatalf("%+v becomes %+v, %v", q, got, err)
		}
		if _, got, err := OpenLetter(answered, publicID(0)); err != nil || *got != a {
			t.Fatalf("%+v becomes %+v, %v", a, got, err)
		}
		if _, _, err := OpenLetter(answered, publicID(3)); !errors.Is(err, errAddressee) {
			t.Fatalf("an answer to another node: %v", err)
		}
		for _, raw := range [][]byte{asked, answered} {
			if n := rapid.IntRange(0, len(raw)-1).Draw(t, "length"); true {
				if _, _, err := OpenLetter(raw[:n], publicID(0)); err == nil {
					t.Fatalf("cut to %d bytes it is taken", n)
				}
			}
			bit := rapid.IntRange(0, 8*len(raw)-1).Draw(t, "bit")
			flipped := bytes.Clone(raw)
			flipped[bit/8] ^= 1 << (bit % 8)
			if _, _, err := OpenLetter(flipped, publicID(0)); err == nil {
				t.Fatalf("with bit %d flipped it is taken", bit)
			}
		}
	})
}
