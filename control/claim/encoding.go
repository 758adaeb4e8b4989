package claim

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"time"
)

// recordVersion is the first byte of a record. It changes when an older node could not go on without
// understanding the newer record; anything else is appended.
const recordVersion = 1

// maxRecord is the largest record in bytes, signature included: what memberlist takes as Meta.
const maxRecord = 512

// Encoding of a record: version, key, then the fields in order, then what a newer version appended, then the
// Ed25519 signature of all before it. Integers are minimal uvarints or big-endian, lists and strings have their length in
// one byte. There is exactly one encoding of a record.
func (r *Record) appendBody(b []byte) []byte {
	b = append(b, recordVersion)
	b = append(b, r.key[:]...)
	b = binary.AppendUvarint(b, r.Epoch)
	b = binary.BigEndian.AppendUint64(b, r.Nonce)
	b = binary.AppendUvarint(b, r.Seq)
	b = binary.AppendUvarint(b, r.Flags)
	b = appendString(b, r.Name)
	b = appendAddr(b, r.Endpoint.Addr())
	b = binary.BigEndian.AppendUint16(b, r.Endpoint.Port())
	b = appendString(b, r.Backend)
	b = binary.AppendUvarint(b, uint64(r.VNI))
	b = binary.BigEndian.AppendUint16(b, r.TunnelPort)
	b = append(b, r.VTEP[:]...)
	b = append(b, byte(len(r.Addrs)))
	for _, a := range r.Addrs {
		b = appendAddr(b, a)
	}
	b = binary.AppendUvarint(b, r.capabilities)
	b = append(b, byte(len(r.Claims)))
	for _, c := range r.Claims {
		b = appendClaim(b, c)
	}
	return append(b, r.extra...)
}

func appendClaim(b []byte, c Claim) []byte {
	b = append(appendAddr(b, c.Block.Addr()), byte(c.Block.Bits()))
	b = binary.AppendUvarint(b, c.Fence)
	b = binary.AppendUvarint(b, uint64(c.Tenure/time.Millisecond))
	return append(b, byte(c.State))
}

func appendString(b []byte, s string) []byte { return append(append(b, byte(len(s))), s...) }

func appendAddr(b []byte, a netip.Addr) []byte {
	return append(append(b, byte(a.BitLen()/8)), a.AsSlice()...)
}

// decodeRecord reads and checks a record but for its signature.
func decodeRecord(raw []byte) (*Record, error) {
	if len(raw) > maxRecord || len(raw) < ed25519.SignatureSize+1 {
		return nil, fmt.Errorf("a record of %d bytes", len(raw))
	}
	if raw[0] != recordVersion {
		return nil, fmt.Errorf("a record of version %d: this node knows version %d", raw[0], recordVersion)
	}
	raw = bytes.Clone(raw)
	d := decoder{rest: raw[1 : len(raw)-ed25519.SignatureSize]}
	r := &Record{Raw: raw}
	d.record(r)
	if d.bad != "" {
		return nil, fmt.Errorf("a record that is no record: %s", d.bad)
	}
	r.ID = IDOf(r.key[:])
	return r, r.check()
}

func (d *decoder) record(r *Record) {
	copy(r.key[:], d.take(len(r.key)))
	r.Epoch = d.uvarint()
	r.Nonce = d.fixed(8)
	r.Seq = d.uvarint()
	r.Flags = d.uvarint()
	r.Name = string(d.take(int(d.fixed(1))))
	r.Endpoint = netip.AddrPortFrom(d.addr(), uint16(d.fixed(2)))
	r.Backend = string(d.take(int(d.fixed(1))))
	r.VNI = uint32(min(d.uvarint(), math.MaxUint32))
	r.TunnelPort = uint16(d.fixed(2))
	copy(r.VTEP[:], d.take(len(r.VTEP)))
	for n := d.fixed(1); n > 0 && d.bad == ""; n-- {
		r.Addrs = append(r.Addrs, d.addr())
	}
	r.capabilities = d.uvarint()
	for n := d.fixed(1); n > 0 && d.bad == ""; n-- {
		r.Claims = append(r.Claims, d.claim())
	}
	if len(d.rest) > 0 {
		r.extra = d.rest
	}
}

func (d *decoder) claim() Claim {
	a := d.addr()
	c := Claim{Block: netip.PrefixFrom(a, int(d.fixed(1))), Fence: d.uvarint()}
	millis := d.uvarint()
	if millis > uint64(math.MaxInt64/time.Millisecond) {
		d.fail("a tenure beyond all time")
		return c
	}
	c.Tenure = time.Duration(millis) * time.Millisecond
	c.State = claimState(d.fixed(1))
	return c
}

// A decoder takes fields off rest. After the first failure it returns zeros.
type decoder struct {
	rest []byte
	bad  string
}

func (d *decoder) fail(reason string) {
	if d.bad == "" {
		d.bad = reason
	}
	d.rest = nil
}

func (d *decoder) take(n int) []byte {
	if n > len(d.rest) {
		d.fail("it ends too early")
		return nil
	}
	b := d.rest[:n:n]
	d.rest = d.rest[n:]
	return b
}

// fixed reads a big-endian integer of n bytes.
func (d *decoder) fixed(n int) (v uint64) {
	for _, b := range d.take(n) {
		v = v<<8 | uint64(b)
	}
	return v
}

// uvarint reads a minimal uvarint.
func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.rest)
	if n <= 0 || n > 1 && d.rest[n-1] == 0 {
		d.fail("a number that is none")
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *decoder) addr() netip.Addr {
	a, ok := netip.AddrFromSlice(d.take(int(d.fixed(1))))
	if !ok {
		d.fail("an address that is none")
	}
	return a
}

// stateVersion is the first byte of the state that nodes exchange whole. Sections follow, each with kind, length and
// content; a node skips the kinds that it does not know.
const (
	stateVersion   = 1
	SectionRecords = 1 // records, each after its length as uvarint
	sectionFences  = 2 // see appendFences
)

// MaxRecords bounds how many nodes this one keeps track of.
const MaxRecords = 16384

// EncodeState packs records and fences for another node.
func EncodeState(records []*Record, fences Fences) []byte {
	var section []byte
	for _, r := range records {
		section = binary.AppendUvarint(section, uint64(len(r.Raw)))
		section = append(section, r.Raw...)
	}
	b := AppendSection([]byte{stateVersion}, SectionRecords, section)
	if len(fences) > 0 {
		b = AppendSection(b, sectionFences, appendFences(nil, fences))
	}
	return b
}

// AppendSection adds a part to a state. A node skips the kinds that it does not know.
func AppendSection(b []byte, kind byte, content []byte) []byte {
	b = binary.AppendUvarint(append(b, kind), uint64(len(content)))
	return append(b, content...)
}

// DecodeState returns the records in another node's state as they are, unverified, and its fences. What comes before a damaged part is
// returned with the error.
func DecodeState(b []byte) (records [][]byte, fences Fences, err error) {
	fences = Fences{}
	if len(b) == 0 || b[0] != stateVersion {
		return nil, fences, fmt.Errorf("a state of another version than %d", stateVersion)
	}
	d := decoder{rest: b[1:]}
	for len(d.rest) > 0 {
		kind, section := d.fixed(1), decoder{rest: d.counted()}
		switch kind {
		case SectionRecords:
			for len(section.rest) > 0 && len(records) < MaxRecords {
				if r := section.counted(); section.bad == "" {
					records = append(records, r)
				}
			}
		case sectionFences:
			section.fences(fences)
		}
		if section.bad != "" {
			d.fail(section.bad)
		}
	}
	if d.bad != "" {
		return records, fences, fmt.Errorf("a state that is none: %s", d.bad)
	}
	return records, fences, nil
}

// Section returns the first part of that kind in a state, nil if there is none.
func Section(state []byte, want byte) []byte {
	if len(state) == 0 || state[0] != stateVersion {
		return nil
	}
	d := decoder{rest: state[1:]}
	for len(d.rest) > 0 {
		kind, content := byte(d.fixed(1)), d.counted()
		if d.bad == "" && kind == want {
			return content
		}
	}
	return nil
}

// counted reads bytes after their length.
func (d *decoder) counted() []byte {
	n := d.uvarint()
	if n > uint64(len(d.rest)) {
		d.fail("it ends too early")
		return nil
	}
	return d.take(int(n))
}
