package packet

// A Batch is what one Port.Read hands over and what one Port.Write takes: frames in
// order. A batch for reading owns an arena that the frames' bytes lie in, packed one
// behind the other; a batch for writing only refers to frames of other batches.
//
// The zero Batch is an empty batch for writing. A Batch is used by one goroutine.
type Batch struct {
	Frames []*Frame

	arena []byte
	used  int      // bytes of the arena handed out since Reset
	store []*Frame // frames to hand out; grows to the largest batch seen
	taken int      // frames handed out since Reset

	pieces [][]byte // what the frames' More refer to
}

// frameChunk is the number of frames by which a Batch's store grows.
const frameChunk = 64

// slotAlign keeps every slot on its own cache lines.
const slotAlign = 64

// NewBatch returns a batch for reading with an arena of arenaSize bytes, which must
// hold at least one slot of SlotSize(MaxFrame).
func NewBatch(arenaSize int) *Batch {
	return &Batch{arena: make([]byte, max(arenaSize, SlotSize(MaxFrame)))}
}

// SlotSize returns the bytes of arena that a frame of n bytes takes.
func SlotSize(n int) int { return (Headroom + n + slotAlign - 1) &^ (slotAlign - 1) }

// Reset empties the batch; its frames are no longer valid.
func (b *Batch) Reset() {
	b.Frames = b.Frames[:0]
	b.used, b.taken = 0, 0
	b.pieces = b.pieces[:0]
}

// Add appends a frame that belongs to another batch.
func (b *Batch) Add(f *Frame) { b.Frames = append(b.Frames, f) }

// Slot returns the next free slot for a frame of up to n bytes, whose first byte is
// to lie at offset Headroom; nil when the arena is full. The slot stays free until
// Claim.
func (b *Batch) Slot(n int) []byte {
	size := SlotSize(n)
	if b.used+size > len(b.arena) {
		return nil
	}
	return b.arena[b.used : b.used+size : b.used+size]
}

// Claim takes the first n bytes of arena behind those already claimed.
func (b *Batch) Claim(n int) { b.used += (n + slotAlign - 1) &^ (slotAlign - 1) }

// Append adds the frame slot[start:end] to the batch and returns it, with every field
// reset. Claiming the slot is the caller's: several frames can lie in one slot.
func (b *Batch) Append(slot []byte, start, end int) *Frame {
	if b.taken == len(b.store) {
		b.grow()
	}
	f := b.store[b.taken]
	b.taken++
	*f = Frame{buf: slot, start: start, end: end, origin: start, Segments: 1}
	b.Frames = append(b.Frames, f)
	return f
}

func (b *Batch) grow() {
	chunk := new([frameChunk]Frame)
	for i := range chunk {
		b.store = append(b.store, &chunk[i])
	}
}
