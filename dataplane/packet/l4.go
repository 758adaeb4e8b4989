package packet

// L4Bytes returns the packet from its L4 header on. Valid iff Parse returned None for an IP packet.
func (f *Frame) L4Bytes() []byte { return f.buf[f.L4:f.end] }

// IsICMPError reports whether the packet is an ICMP error or a redirect. Valid iff Parse returned None for an IP packet that is
// no later fragment.
func (f *Frame) IsICMPError() bool { return f.isICMP() && !f.isICMPInfo() }
