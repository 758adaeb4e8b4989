package packet

// CopyTo makes g a copy of the frame, every field included, whose bytes lie in slot behind
// Headroom. It outlives the frame's batch and lives as long as the slot, which has at least
// SlotSize(f.Len()) bytes. What lay in front of the frame's first byte is not copied.
func (f *Frame) CopyTo(g *Frame, slot []byte) {
	shift := Headroom - f.start
	*g = *f
	g.buf, g.start, g.end = slot, Headroom, Headroom+f.Len()
	copy(slot[Headroom:], f.Bytes())
	g.L2, g.L3, g.L4, g.Payload = f.L2+shift, f.L3+shift, f.L4+shift, f.Payload+shift
}
