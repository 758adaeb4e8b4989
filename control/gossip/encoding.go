package gossip

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
func (r *record) appendBody(b []byte) []byte {
	b = append(b, recordVersion)
	b = append(b, r.key[:]...)
	b = binary.AppendUvarint(b, r.epoch)
	b = binary.BigEndian.AppendUint64(b, r.nonce)
	b = binary.AppendUvarint(b, r.seq)
	b = binary.AppendUvarint(b, r.flags)
	b = appendString(b, r.name)
	b = appendAddr(b, r.endpoint.Addr())
	b = binary.BigEndian.AppendUint16(b, r.endpoint.Port())
	b = appendString(b, r.backend)
	b = binary.AppendUvarint(b, uint64(r.vni))
	b = binary.BigEndian.AppendUint16(b, r.tunnelPort)
	b = append(b, r.vtep[:]...)
	b = append(b, byte(len(r.addrs)))
	for _, a := range r.addrs {
		b = appendAddr(b, a)
	}
	b = binary.AppendUvarint(b, r.capabilities)
	b = append(b, byte(len(r.claims)))
	for _, c := range r.claims {
		b = append(appendAddr(b, c.block.Addr()), byte(c.block.Bits()))
		b = binary.AppendUvarint(b, c.fence)
		b = binary.AppendUvarint(b, uint64(c.tenure/time.Millisecond))
		b = append(b, byte(c.state))
	}
	return append(b, r.extra...)
}

func appendString(b []byte, s string) []byte { return append(append(b, byte(len(s))), s...) }

func appendAddr(b []byte, a netip.Addr) []byte {
	return append(append(b, byte(a.BitLen()/8)), a.AsSlice()...)
}

// decodeRecord reads and checks a record but for its signature.
func decodeRecord(raw []byte) (*record, error) {
	if len(raw) > maxRecord || len(raw) < ed25519.SignatureSize+1 {
		return nil, fmt.Errorf("a record of %d bytes", len(raw))
	}
	if raw[0] != recordVersion {
		return nil, fmt.Errorf("a record of version %d: this node knows version %d", raw[0], recordVersion)
	}
	raw = bytes.Clone(raw)
	d := decoder{rest: raw[1 : len(raw)-ed25519.SignatureSize]}
	r := &record{raw: raw}
	d.record(r)
	if d.bad != "" {
		return nil, fmt.Errorf("a record that is no record: %s", d.bad)
	}
	r.id = idOf(r.key[:])
	return r, r.check()
}

func (d *decoder) record(r *record) {
	copy(r.key[:], d.take(len(r.key)))
	r.epoch = d.uvarint()
	r.nonce = d.fixed(8)
	r.seq = d.uvarint()
	r.flags = d.uvarint()
	r.name = string(d.take(int(d.fixed(1))))
	r.endpoint = netip.AddrPortFrom(d.addr(), uint16(d.fixed(2)))
	r.backend = string(d.take(int(d.fixed(1))))
	r.vni = uint32(min(d.uvarint(), math.MaxUint32))
	r.tunnelPort = uint16(d.fixed(2))
	copy(r.vtep[:], d.take(len(r.vtep)))
	for n := d.fixed(1); n > 0 && d.bad == ""; n-- {
		r.addrs = append(r.addrs, d.addr())
	}
	r.capabilities = d.uvarint()
	for n := d.fixed(1); n > 0 && d.bad == ""; n-- {
		r.claims = append(r.claims, d.claim())
	}
	if len(d.rest) > 0 {
		r.extra = d.rest
	}
}

func (d *decoder) claim() claim {
	a := d.addr()
	c := claim{block: netip.PrefixFrom(a, int(d.fixed(1))), fence: d.uvarint()}
	millis := d.uvarint()
	if millis > uint64(math.MaxInt64/time.Millisecond) {
		d.fail("a tenure beyond all time")
		return c
	}
	c.tenure = time.Duration(millis) * time.Millisecond
	c.state = claimState(d.fixed(1))
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
	sectionRecords = 1 // records, each after its length as uvarint
)

// maxRecords bounds how many nodes this one keeps track of.
const maxRecords = 16384

// encodeState packs records for another node.
func encodeState(records []*record) []byte {
	var section []byte
	for _, r := range records {
		section = binary.AppendUvarint(section, uint64(len(r.raw)))
		section = append(section, r.raw...)
	}
	b := []byte{stateVersion, sectionRecords}
	b = binary.AppendUvarint(b, uint64(len(section)))
	return append(b, section...)
}

// decodeState returns the records in another node's state as they are, unverified. Those before a damaged part are
// returned with the error.
func decodeState(b []byte) (records [][]byte, err error) {
	if len(b) == 0 || b[0] != stateVersion {
		return nil, fmt.Errorf("a state of another version than %d", stateVersion)
	}
	d := decoder{rest: b[1:]}
	for len(d.rest) > 0 {
		kind, content := d.fixed(1), d.counted()
		if kind != sectionRecords {
			continue
		}
		section := decoder{rest: content}
		for len(section.rest) > 0 && len(records) < maxRecords {
			if r := section.counted(); section.bad == "" {
				records = append(records, r)
			}
		}
		if section.bad != "" {
			d.fail(section.bad)
		}
	}
	if d.bad != "" {
		return records, fmt.Errorf("a state that is none: %s", d.bad)
	}
	return records, nil
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
