package claim

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// First bytes of what nodes send each other beside records, which begin with recordVersion.
const (
	requestKind = 0xa1
	answerKind  = 0xa2
)

// maxLetter is the largest letter in bytes, signature included.
const maxLetter = 256

// Encoding of a letter: kind, key of the sender, body, Ed25519 signature of all before it, in the manner of records.

// Seal encodes and signs the request.
func (q Request) Seal(key ed25519.PrivateKey) []byte {
	b := letterHead(requestKind, key)
	b = binary.AppendUvarint(b, q.Attempt)
	b = binary.AppendUvarint(b, q.Seq)
	b = appendClaim(b, q.Claim)
	if q.Second.IsValid() {
		b = append(appendAddr(b, q.Second.Addr()), byte(q.Second.Bits()))
	} else {
		b = append(b, 0)
	}
	return append(b, ed25519.Sign(key, letterBytes(b))...)
}

// Seal encodes and signs the answer to the node that asked.
func (a Answer) Seal(to NodeID, key ed25519.PrivateKey) []byte {
	b := append(letterHead(answerKind, key), to[:]...)
	b = append(binary.AppendUvarint(b, a.Attempt), byte(a.Verdict))
	if a.Verdict == No {
		b = append(appendClaim(b, a.Holder), a.Of[:]...)
	}
	return append(b, ed25519.Sign(key, letterBytes(b))...)
}

func letterHead(kind byte, key ed25519.PrivateKey) []byte {
	return append([]byte{kind}, key.Public().(ed25519.PublicKey)...)
}

// letterBytes sets letters apart from anything else that a node's key signs.
func letterBytes(body []byte) []byte { return append([]byte("tulle gossip letter\x00"), body...) }

// IsLetter says whether a message is a letter and no record.
func IsLetter(raw []byte) bool {
	return len(raw) > 0 && (raw[0] == requestKind || raw[0] == answerKind)
}

var errAddressee = errors.New("an answer to another node")

// OpenLetter decodes and verifies a letter to the node self: exactly one of request and answer is not nil unless there is an error.
func OpenLetter(raw []byte, self NodeID) (*Request, *Answer, error) {
	if len(raw) > maxLetter || len(raw) < 1+ed25519.PublicKeySize+ed25519.SignatureSize || !IsLetter(raw) {
		return nil, nil, fmt.Errorf("a letter of %d bytes that is none", len(raw))
	}
	body, signature := raw[:len(raw)-ed25519.SignatureSize], raw[len(raw)-ed25519.SignatureSize:]
	key := body[1 : 1+ed25519.PublicKeySize]
	if !ed25519.Verify(key, letterBytes(body), signature) {
		return nil, nil, errSignature
	}
	d := decoder{rest: body[1+ed25519.PublicKeySize:]}
	if body[0] == requestKind {
		q := d.request(IDOf(key))
		return q, nil, d.end()
	}
	to := NodeID{}
	copy(to[:], d.take(len(to)))
	a := d.answer(IDOf(key))
	if err := d.end(); err != nil {
		return nil, nil, err
	}
	if to != self {
		return nil, nil, errAddressee
	}
	return nil, a, nil
}

func (d *decoder) end() error {
	if len(d.rest) > 0 {
		d.fail("it goes on after its end")
	}
	if d.bad != "" {
		return fmt.Errorf("a letter that is none: %s", d.bad)
	}
	return nil
}

func (d *decoder) request(by NodeID) *Request {
	q := &Request{By: by, Attempt: d.uvarint(), Seq: d.uvarint(), Claim: d.block()}
	if len(d.rest) > 0 && d.rest[0] == 0 {
		d.take(1)
		return q
	}
	q.Second = netip.PrefixFrom(d.addr(), int(d.fixed(1)))
	d.masked(q.Second)
	return q
}

func (d *decoder) answer(from NodeID) *Answer {
	a := &Answer{From: from, Attempt: d.uvarint(), Verdict: Verdict(d.fixed(1))}
	switch a.Verdict {
	case Abstain, Yes:
	case No:
		a.Holder = d.block()
		copy(a.Of[:], d.take(len(a.Of)))
	default:
		d.fail("a verdict that is none")
	}
	return a
}

// block reads a claim on a block that may be one.
func (d *decoder) block() Claim {
	c := d.claim()
	d.masked(c.Block)
	return c
}

func (d *decoder) masked(p netip.Prefix) {
	if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
		d.fail("a block that is none")
	}
}

// appendFences encodes fences: block, number, and the quarantine served in milliseconds, each after the other.
func appendFences(b []byte, f Fences) []byte {
	for block, one := range f {
		b = append(appendAddr(b, block.Addr()), byte(block.Bits()))
		b = binary.AppendUvarint(b, one.Number)
		b = binary.AppendUvarint(b, uint64(one.Served/time.Millisecond))
	}
	return b
}

// fences decodes them. What is of no network here is for the caller to leave out.
func (d *decoder) fences(f Fences) {
	for len(d.rest) > 0 && len(f) < MaxFences {
		block := netip.PrefixFrom(d.addr(), int(d.fixed(1)))
		number, served := d.uvarint(), d.uvarint()
		d.masked(block)
		if number == 0 || number > maxFence || served > uint64(Quarantine/time.Millisecond) {
			d.fail("a fence that is none")
		}
		if d.bad != "" {
			return
		}
		f.Merge(block, Fence{number, time.Duration(served) * time.Millisecond})
	}
}
