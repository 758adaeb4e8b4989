package claim

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/tulle-net/tulle/dataplane/tables"
)

// A NodeID names a node for as long as it has its key: the start of the key's SHA-256.
type NodeID [16]byte

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// String returns the ID as it is logged and shown, 26 letters and digits.
func (id NodeID) String() string { return idEncoding.EncodeToString(id[:]) }

func (id NodeID) Compare(other NodeID) int { return bytes.Compare(id[:], other[:]) }

// IDOf returns the ID that belongs to a public key.
func IDOf(key ed25519.PublicKey) NodeID {
	sum := sha256.Sum256(key)
	return NodeID(sum[:16])
}

// A claimState says how far a claim is. Values that this node does not know reserve the block and own nothing.
type claimState uint8

const (
	Tentative claimState = iota
	Confirmed
	Released // given back for good: its fence is raised
)

// A Claim is a node's word on a block. It is dead when another claim on the same block has a higher fence.
type Claim struct {
	Block  netip.Prefix // masked
	Fence  uint64
	Tenure time.Duration // confirmed time up to the record, over all boots; whole milliseconds
	State  claimState
}

// FlagLeaving marks the last record of a node that goes on purpose.
const FlagLeaving = 1 << 0

// A Record is what one node says of itself. Immutable once signed or decoded: readers share it.
type Record struct {
	key   [ed25519.PublicKeySize]byte
	Epoch uint64 // of the boot, grows with each
	Nonce uint64 // of the boot, random: two boots of one epoch are a copied or a rolled-back disk
	Seq   uint64 // grows with each record of the boot
	Flags uint64 // unknown bits are carried along

	Name         string
	Endpoint     netip.AddrPort // public IP and gossip port
	Backend      string
	VNI          uint32
	TunnelPort   uint16
	VTEP         tables.MAC
	Addrs        []netip.Addr // further own addresses that packets may come from: dual stack, the public IPv6 one
	capabilities uint64
	Claims       []Claim
	extra        []byte // what a newer node appended

	ID  NodeID // of key
	Raw []byte // the signed encoding
}

func (r *Record) Leaving() bool { return r.Flags&FlagLeaving != 0 }

// KeyTag names the newest cluster key that the node has, 0 from a node that does not say. It follows the fields of the first version.
func (r *Record) KeyTag() uint64 {
	if len(r.extra) < 8 {
		return 0
	}
	return binary.BigEndian.Uint64(r.extra)
}

// SetKeyTag is for a record that is not signed yet.
func (r *Record) SetKeyTag(tag uint64) { r.extra = binary.BigEndian.AppendUint64(nil, tag) }

// compare orders the records of one node. The bytes come last, so that the order is total and merging
// converges whatever a broken node signed.
func (r *Record) compare(other *Record) int {
	return cmp.Or(
		r.compareBoot(other),
		cmp.Compare(r.Seq, other.Seq),
		bytes.Compare(r.Raw, other.Raw),
	)
}

// compareBoot orders the boots that two records are of.
func (r *Record) compareBoot(other *Record) int {
	return cmp.Or(cmp.Compare(r.Epoch, other.Epoch), cmp.Compare(r.Nonce, other.Nonce))
}

// ConfirmedClaim returns the record's confirmed claim.
func (r *Record) ConfirmedClaim() (Claim, bool) {
	for _, c := range r.Claims {
		if c.State == Confirmed {
			return c, true
		}
	}
	return Claim{}, false
}

// Member returns the name under which the record's boot is a member.
func (r *Record) Member() string { return MemberName(r.ID, r.Epoch) }

// String names the node in messages.
func (r *Record) String() string {
	return fmt.Sprintf("%s (%s, id %s)", r.Name, r.Endpoint.Addr(), r.ID)
}

// Bounds of what a record may hold. A name is a host name (RFC 1123) at most.
const (
	maxName    = 253
	maxBackend = 16
	maxAddrs   = 8
	maxClaims  = 8
)

// check refuses what no node may say of itself. Whether a claim fits this network is the claims' matter.
func (r *Record) check() error {
	switch {
	case r.Name == "" || len(r.Name) > maxName || !plain(r.Name):
		return fmt.Errorf("node name %q: 1 to %d printable ASCII characters are needed", r.Name, maxName)
	case !usable(r.Endpoint.Addr()) || r.Endpoint.Port() == 0:
		return fmt.Errorf("endpoint %s is no unicast address with a port", r.Endpoint)
	case len(r.Backend) > maxBackend || !plain(r.Backend):
		return fmt.Errorf("backend %q: at most %d printable ASCII characters", r.Backend, maxBackend)
	case r.VNI >= 1<<24:
		return fmt.Errorf("VNI %d has more than 24 bits", r.VNI)
	case r.VTEP[0]&1 != 0:
		return fmt.Errorf("VTEP MAC %s is a multicast address", r.VTEP)
	case len(r.Addrs) > maxAddrs || len(r.Claims) > maxClaims:
		return fmt.Errorf("%d addresses and %d claims: at most %d and %d", len(r.Addrs), len(r.Claims), maxAddrs, maxClaims)
	}
	for _, a := range r.Addrs {
		if !usable(a) {
			return fmt.Errorf("address %s is no unicast address", a)
		}
	}
	return r.checkClaims()
}

func (r *Record) checkClaims() error {
	for _, c := range r.Claims {
		if !c.Block.IsValid() || c.Block != c.Block.Masked() || c.Block.Addr().Is4In6() {
			return fmt.Errorf("claim of %s: no masked prefix", c.Block)
		}
		if c.Tenure < 0 || c.Tenure%time.Millisecond != 0 {
			return fmt.Errorf("claim of %s: tenure %s is no whole number of milliseconds", c.Block, c.Tenure)
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

// Sign fills in key, id and raw. The record must not change afterwards.
func (r *Record) Sign(key ed25519.PrivateKey) error {
	r.key = [ed25519.PublicKeySize]byte(key.Public().(ed25519.PublicKey))
	r.ID = IDOf(r.key[:])
	if err := r.check(); err != nil {
		return err
	}
	body := r.appendBody(nil)
	if size := len(body) + ed25519.SignatureSize; size > maxRecord {
		return fmt.Errorf("the node's record is of %d bytes, more than the %d that gossip carries: a shorter node name helps", size, maxRecord)
	}
	r.Raw = append(body, ed25519.Sign(key, signedBytes(body))...)
	return nil
}

var errSignature = errors.New("its signature does not match")

// OpenRecord decodes and verifies a record from the network. It keeps no reference to raw.
func OpenRecord(raw []byte) (*Record, error) {
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

// SupersededBy says whether raw, unverified, says that it is an older record of the boot that r is of.
func SupersededBy(raw []byte, r *Record) bool {
	if len(raw) < 1+ed25519.PublicKeySize || raw[0] != recordVersion || [ed25519.PublicKeySize]byte(raw[1:]) != r.key {
		return false
	}
	d := decoder{rest: raw[1+ed25519.PublicKeySize:]}
	epoch, nonce, seq := d.uvarint(), d.fixed(8), d.uvarint()
	return d.bad == "" && epoch == r.Epoch && nonce == r.Nonce && seq < r.Seq
}

// signedBytes sets records apart from anything else that a node's key may sign one day.
func signedBytes(body []byte) []byte { return append([]byte("tulle gossip record\x00"), body...) }

// MemberName is a boot's name in memberlist: a boot that comes back is a new member, and nothing that is said of the old
// one can hurt it.
func MemberName(id NodeID, epoch uint64) string {
	return id.String() + "." + strconv.FormatUint(epoch, 10)
}

// ParseMember is memberName's inverse.
func ParseMember(name string) (id NodeID, epoch uint64, ok bool) {
	text, number, _ := strings.Cut(name, ".")
	raw, err := idEncoding.DecodeString(text)
	epoch, err2 := strconv.ParseUint(number, 10, 64)
	if err != nil || err2 != nil || len(raw) != len(id) {
		return id, 0, false
	}
	id = NodeID(raw)
	return id, epoch, MemberName(id, epoch) == name
}
