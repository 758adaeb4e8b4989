package fragment_test

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/tulle-net/tulle/dataplane/fragment"
	"github.com/tulle-net/tulle/dataplane/packet"
)

// stepLen bytes of fuzz input make one step: flags, pause, offset and length.
const stepLen = 6

// FuzzTracker drives the Tracker and the model with the same fragments: small and large
// tables, any places, any pauses.
func FuzzTracker(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 0))
	for range 20 {
		var seed []byte
		for _, p := range append(cut(r, false), cut(r, false)...) {
			seed = append(seed, encode(p, r)...)
		}
		f.Add(uint8(r.Uint32()), seed)
	}
	f.Fuzz(func(t *testing.T, size uint8, data []byte) {
		n := 1 + int(size%8)
		d := newPair(t, fragment.Limits{Datagrams: n, Held: 1 + int(size/8), Memory: 1, Wait: 3 * time.Second}, false)
		for ; len(data) >= stepLen; data = data[stepLen:] {
			d.step([stepLen]byte(data))
		}
	})
}

func encode(p part, r *rand.Rand) []byte {
	flags := byte(p.id) | p.host<<1&2
	if p.v6 {
		flags |= 4
	}
	if p.more {
		flags |= 8
	}
	step := []byte{flags | byte(r.Uint32())&0xf0, byte(r.Uint32())}
	step = binary.BigEndian.AppendUint16(step, uint16(p.offset/8))
	return binary.BigEndian.AppendUint16(step, uint16(p.length))
}

func (d *pair) step(b [stepLen]byte) {
	flags := b[0]
	p := part{id: uint32(flags & 1), host: flags >> 1 & 1, v6: flags&4 != 0, more: flags&8 != 0, proto: packet.ProtoUDP, detached: flags&16 != 0}
	p.offset = int(binary.BigEndian.Uint16(b[2:])) % 8192 * 8
	p.length = int(binary.BigEndian.Uint16(b[4:])) % 65000
	if pause := b[1]; pause >= 128 {
		d.now += time.Duration(pause-128) * time.Duration(pause-128) * 2 * time.Millisecond // up to 32 s
	}
	if flags&32 != 0 {
		d.recycle()
	}
	if flags&64 != 0 {
		d.expire()
	}
	d.judge(p, decisions[int(b[1])%len(decisions)])
}
