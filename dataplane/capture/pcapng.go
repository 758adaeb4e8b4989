package capture

import (
	"encoding/binary"
	"math"
	"time"
)

// pcapng block types and options (draft-ietf-opsawg-pcapng).
const (
	blockSection    = 0x0a0d0d0a
	blockInterface  = 1
	blockStatistics = 5
	blockPacket     = 6

	byteOrderMagic = 0x1a2b3c4d

	optEnd, optComment                             = 0, 1
	optHardware, optOS, optApplication             = 2, 3, 4
	optName, optDescription, optResolution, optFil = 2, 3, 9, 11
	optFlags                                       = 2
	optReceived, optDropped                        = 4, 5
)

// A Section is the head of a file.
type Section struct{ Application, OS, Comment string }

// An Interface is where packets of a file come from. Its number is its place among the interfaces of its section.
type Interface struct {
	Stage       Stage    `json:"stage"`
	Name        string   `json:"name"`
	Description string   `json:"description"`
	Link        LinkType `json:"linkType"`
}

// A Direction is that of a packet (epb_flags).
type Direction uint8

// Directions, as seen from the engine: Inbound is towards it. Of the wire: as seen from the link.
const (
	NoDirection Direction = iota
	Inbound
	Outbound
)

// A Block is a packet to be written.
type Block struct {
	Interface int
	Time      time.Time
	Data      []byte
	Length    int // of the whole packet; at least len(Data)
	Direction Direction
	Comment   []byte
}

// Statistics count an interface from the start of the capture on.
type Statistics struct {
	Interface int
	Time      time.Time
	Received  uint64 // passed the filters, and Missed
	Missed    uint64 // Received, but there was no room
	Comment   string
}

// AppendSection begins a file. All blocks are in little-endian order.
func AppendSection(b []byte, s Section) []byte {
	b, start := beginBlock(b, blockSection)
	b = binary.LittleEndian.AppendUint32(b, byteOrderMagic)
	b = binary.LittleEndian.AppendUint16(b, 1) // version 1.0
	b = binary.LittleEndian.AppendUint16(b, 0)
	b = binary.LittleEndian.AppendUint64(b, math.MaxUint64) // length not given
	b = appendText(b, optComment, s.Comment)
	b = appendText(b, optOS, s.OS)
	b = appendText(b, optApplication, s.Application)
	return endBlock(endOptions(b), start)
}

// AppendInterface announces an interface. Times are in nanoseconds.
func AppendInterface(b []byte, i Interface, snapLen int, filter string) []byte {
	b, start := beginBlock(b, blockInterface)
	b = binary.LittleEndian.AppendUint16(b, uint16(i.Link))
	b = binary.LittleEndian.AppendUint16(b, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(snapLen))
	b = appendText(b, optName, i.Name)
	b = appendText(b, optDescription, i.Description)
	b = appendOption(b, optResolution, []byte{9})
	if filter != "" {
		b = appendOption(b, optFil, append([]byte{0}, clip(filter)...)) // 0: a libpcap filter as text
	}
	return endBlock(endOptions(b), start)
}

// AppendPacket writes a packet.
func AppendPacket(b []byte, p *Block) []byte {
	b, start := beginBlock(b, blockPacket)
	b = binary.LittleEndian.AppendUint32(b, uint32(p.Interface))
	b = appendTime(b, p.Time)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(p.Data)))
	b = binary.LittleEndian.AppendUint32(b, uint32(p.Length))
	b = pad(append(b, p.Data...), len(p.Data))
	if len(p.Comment) > 0 {
		b = appendOption(b, optComment, clip(p.Comment))
	}
	if p.Direction != NoDirection {
		var flags [4]byte
		binary.LittleEndian.PutUint32(flags[:], uint32(p.Direction))
		b = appendOption(b, optFlags, flags[:])
	}
	return endBlock(endOptions(b), start)
}

// AppendStatistics writes an interface's counters.
func AppendStatistics(b []byte, s *Statistics) []byte {
	b, start := beginBlock(b, blockStatistics)
	b = binary.LittleEndian.AppendUint32(b, uint32(s.Interface))
	b = appendTime(b, s.Time)
	b = appendText(b, optComment, s.Comment)
	b = appendOption(b, optReceived, binary.LittleEndian.AppendUint64(nil, s.Received))
	b = appendOption(b, optDropped, binary.LittleEndian.AppendUint64(nil, s.Missed))
	return endBlock(endOptions(b), start)
}

func beginBlock(b []byte, kind uint32) ([]byte, int) {
	start := len(b)
	b = binary.LittleEndian.AppendUint32(b, kind)
	return binary.LittleEndian.AppendUint32(b, 0), start // the length comes with the end
}

func endBlock(b []byte, start int) []byte {
	length := uint32(len(b) - start + 4)
	binary.LittleEndian.PutUint32(b[start+4:], length)
	return binary.LittleEndian.AppendUint32(b, length)
}

func appendTime(b []byte, t time.Time) []byte {
	ns := uint64(t.UnixNano())
	b = binary.LittleEndian.AppendUint32(b, uint32(ns>>32))
	return binary.LittleEndian.AppendUint32(b, uint32(ns))
}

func appendText(b []byte, code uint16, text string) []byte {
	if text == "" {
		return b
	}
	return appendOption(b, code, []byte(clip(text)))
}

// clip keeps an option's value within its 16 bits of length.
func clip[T string | []byte](text T) T { return text[:min(len(text), math.MaxUint16-8)] }

func appendOption(b []byte, code uint16, value []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, code)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
	return pad(append(b, value...), len(value))
}

func endOptions(b []byte) []byte { return binary.LittleEndian.AppendUint32(b, optEnd) }

// pad fills up to a multiple of 4 bytes.
func pad(b []byte, n int) []byte { return append(b, "\x00\x00\x00"[:(4-n%4)%4]...) }
