package capture

import "github.com/tulle-net/tulle/dataplane/packet"

// parts are what a packet consists of, in order. They lie in the frame or are the producer's own, and are valid until the observer returns.
type parts struct {
	outer []byte   // synthesized IP and UDP headers; nil for none
	link  []byte   // an Ethernet header that does not lie in front of data; nil for none
	data  []byte   //
	more  [][]byte // payloads of joined segments
}

// bytesOf is a frame without the Ethernet header that it has beside its bytes.
func bytesOf(f *packet.Frame) parts { return parts{data: f.Bytes(), more: f.More} }

// enclosed is a frame that is encapsulated, behind synthesized headers.
func (p *producer) enclosed(f *packet.Frame, outbound bool) parts {
	return parts{outer: p.synthesize(f, outbound), data: f.Bytes(), more: f.More}
}

// atTAP is a frame as the device has it.
func (p *producer) atTAP(f *packet.Frame) parts {
	all := parts{link: f.DetachedLink(), data: f.Bytes(), more: f.More}
	if !p.session.config.L3 {
		return all
	}
	if all.link == nil {
		all.data = all.data[min(len(all.data), packet.EthernetLen):]
	}
	all.link = nil
	return all
}

func (p *parts) length() int {
	n := len(p.outer) + len(p.link) + len(p.data)
	for _, piece := range p.more {
		n += len(piece)
	}
	return n
}

// copyTo fills b with as much as there is room for.
func (p *parts) copyTo(b []byte) {
	b = b[copy(b, p.outer):]
	b = b[copy(b, p.link):]
	b = b[copy(b, p.data):]
	for _, piece := range p.more {
		b = b[copy(b, piece):]
	}
}
