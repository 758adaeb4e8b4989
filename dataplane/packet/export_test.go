package packet

// Slot returns the slot that the frame lies in.
func (f *Frame) Slot() []byte { return f.buf }
