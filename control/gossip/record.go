package gossip

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// A nodeID names a node for as long as it has its key: the start of the key's SHA-256.
type nodeID [16]byte

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// String returns the ID as it is logged and shown, 26 letters and digits.
func (id nodeID) String() string { return idEncoding.EncodeToString(id[:]) }

func (id nodeID) compare(other nodeID) int { return bytes.Compare(id[:], other[:]) }

// idOf returns the ID that belongs to a public key.
func idOf(key ed25519.PublicKey) nodeID {
	sum := sha256.Sum256(key)
	return nodeID(sum[:16])
}

// A claimState says how far a claim is. Values that this node does not know reserve the block and own nothing.
type claimState uint8

const (
	tentative claimState = iota
	confirmed
)

// A claim is a node's word on a block. It is dead when another claim on the same block has a higher fence.
type claim struct {
	block  netip.Prefix // masked
	fence  uint64
	tenure time.Duration // confirmed time up to the record, over all boots; whole milliseconds
	state  claimState
}

// flagLeaving marks the last record of a node that goes on purpose.
const flagLeaving = 1 << 0

// A record is what one node says of itself. Immutable once signed or decoded: readers share it.
type record struct {
	key   [ed25519.PublicKeySize]byte
	epoch uint64 // of the boot, grows with each
	nonce uint64 // of the boot, random: two boots of one epoch are a copied or a rolled-back disk
	seq   uint64 // grows with each record of the boot
	flags uint64 // unknown bits are carried along

	name         string
	endpoint     netip.AddrPort // public IP and gossip port
	backend      string
	vni          uint32
	tunnelPort   uint16
	vtep         tables.MAC
	addrs        []netip.Addr // further own addresses that packets may come from: dual stack, the public IPv6 one
	capabilities uint64
	claims       []claim
	extra        []byte // what a newer node appended

	id  nodeID // of key
	raw []byte // the signed encoding
}

func (r *record) leaving() bool { return r.flags&flagLeaving != 0 }

// compare orders the records of one node. The bytes come last, so that the order is total and merging
// converges whatever a broken node signed.
func (r *record) compare(other *record) int {
	return cmp.Or(
		r.compareBoot(other),
		cmp.Compare(r.seq, other.seq),
		bytes.Compare(r.raw, other.raw),
	)
}

// compareBoot orders the boots that two records are of.
func (r *record) compareBoot(other *record) int {
	return cmp.Or(cmp.Compare(r.epoch, other.epoch), cmp.Compare(r.nonce, other.nonce))
}

// confirmedClaim returns the record's confirmed claim.
func (r *record) confirmedClaim() (claim, bool) {
	for _, c := range r.claims {
		if c.state == confirmed {
			return c, true
		}
	}
	return claim{}, false
}

// node returns what the record says of its node, without subnets.
func (r *record) node() control.Node {
	n := control.Node{Name: r.name, BackendType: r.backend, VNI: r.vni}
	for _, a := range append([]netip.Addr{r.endpoint.Addr()}, r.addrs...) {
		switch {
		case a.Is4() && !n.PublicIP.IsValid():
			n.PublicIP, n.VTEP = a, r.vtep
		case a.Is6() && !n.PublicIPv6.IsValid():
			n.PublicIPv6, n.VTEPv6 = a, r.vtep
		}
	}
	return n
}

// member returns the name under which the record's boot is a member.
func (r *record) member() string { return memberName(r.id, r.epoch) }

// String names the node in messages.
func (r *record) String() string {
	return fmt.Sprintf("%s (%s, id %s)", r.name, r.endpoint.Addr(), r.id)
}

// Bounds of what a record may hold. A name is a host name (RFC 1123) at most.
const (
	maxName    = 253
	maxBackend = 16
	maxAddrs   = 8
	maxClaims  = 8
)

// check refuses what no node may say of itself. Whether a claim fits this network is the claims' matter.
func (r *record) check() error {
	switch {
	case r.name == "" || len(r.name) > maxName || !plain(r.name):
		return fmt.Errorf("node name %q: 1 to %d printable ASCII characters are needed", r.name, maxName)
	case !usable(r.endpoint.Addr()) || r.endpoint.Port() == 0:
		return fmt.Errorf("endpoint %s is no unicast address with a port", r.endpoint)
	case len(r.backend) > maxBackend || !plain(r.backend):
		return fmt.Errorf("backend %q: at most %d printable ASCII characters", r.backend, maxBackend)
	case r.vni >= 1<<24:
		return fmt.Errorf("VNI %d has more than 24 bits", r.vni)
	case r.vtep[0]&1 != 0:
		return fmt.Errorf("VTEP MAC %s is a multicast address", r.vtep)
	case len(r.addrs) > maxAddrs || len(r.claims) > maxClaims:
		return fmt.Errorf("%d addresses and %d claims: at most %d and %d", len(r.addrs), len(r.claims), maxAddrs, maxClaims)
	}
	for _, a := range r.addrs {
		if !usable(a) {
			return fmt.Errorf("address %s is no unicast address", a)
		}
	}
	return r.checkClaims()
}

func (r *record) checkClaims() error {
	for _, c := range r.claims {
		if !c.block.IsValid() || c.block != c.block.Masked() || c.block.Addr().Is4In6() {
			return fmt.Errorf("claim of %s: no masked prefix", c.block)
		}
		if c.tenure < 0 || c.tenure%time.Millisecond != 0 {
			return fmt.Errorf("claim of %s: tenure %s is no whole number of milliseconds", c.block, c.tenure)
		}
	}
	return nil
}

func usable(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.Is4In6() && a.Zone() == ""
}

// plain says whether s is fit for logs, terminals and file names that come of it.
func plain(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c > '~' })
}

// sign fills in key, id and raw. The record must not change afterwards.
func (r *record) sign(key ed25519.PrivateKey) error {
	r.key = [ed25519.PublicKeySize]byte(key.Public().(ed25519.PublicKey))
	r.id = idOf(r.key[:])
	if err := r.check(); err != nil {
		return err
	}
	body := r.appendBody(nil)
	if size := len(body) + ed25519.SignatureSize; size > maxRecord {
		return fmt.Errorf("the node's record is of %d bytes, more than the %d that gossip carries: a shorter node name helps", size, maxRecord)
	}
	r.raw = append(body, ed25519.Sign(key, signedBytes(body))...)
	return nil
}

var errSignature = errors.New("its signature does not match")

// openRecord decodes and verifies a record from the network. It keeps no reference to raw.
func openRecord(raw []byte) (*record, error) {
	r, err := decodeRecord(raw)
	if err != nil {
		return nil, err
	}
	body, signature := raw[:len(raw)-ed25519.SignatureSize], raw[len(raw)-ed25519.SignatureSize:]
	if !ed25519.Verify(r.key[:], signedBytes(body), signature) {
		return nil, errSignature
	}
	return r, nil
}

// signedBytes sets records apart from anything else that a node's key may sign one day.
func signedBytes(body []byte) []byte { return append([]byte("tulle gossip record\x00"), body...) }
