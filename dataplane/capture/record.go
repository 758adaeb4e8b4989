package capture

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// The stream is records of whole multiples of recordAlign bytes in little-endian order, each as it lay in its ring:
//
//	 0 length of the record   4 kind   5 interface   6 verdict   7 flags
//	 8 time, ns since 1970   16 serial   24 flow ID
//	32 packet's length   36 captured   40 segments   42 segment size   44 worker   46 length of the peer's name
//	48 captured bytes, peer's name, which may have come later and leaves room then
//
// It ends with a record of kindEnd, unless the daemon or its machine went away.
const (
	recordAlign  = 8
	recordHeader = 48
	maxPeer      = 64 // of its name, bytes; longer ones are cut
	maxRecord    = recordHeader + maxPeer + MaxSnapLen + recordAlign
)

// MaxSnapLen is more than any packet has.
const MaxSnapLen = 262144

const (
	kindSkip   = iota // says nothing
	kindPacket        //
	kindStats         // interface, time; serial is Received and flow ID is Missed
	kindEnd           // captured bytes are the reason
)

// Flags say how a packet is to be read.
type Flags uint8

// Flags of a Record.
const (
	FlagInbound     Flags = 1 << iota // towards the engine; on the wire: towards the node
	FlagOutbound                      //
	FlagMade                          // the engine's own packet
	FlagKnown                         // its flow was known before
	FlagSynthesized                   // the outer IP and UDP headers were made by the capture
	FlagPartial                       // the L4 checksum is left to a device: what the field holds is no checksum
	FlagVLAN                          // the VLAN tag was put back in by the capture
	FlagCut                           // one of the datagrams of a send: its outer lengths, IP ID and IP checksum are what the kernel will write
)

// A Record is a packet of the stream. Data is valid until the next one is read.
type Record struct {
	Interface int
	Verdict   packet.Verdict // None: not decided when the packet was captured
	Flags     Flags
	Time      time.Time
	Serial    uint64 // 0 for none
	FlowID    uint64 // 0 for none
	Length    int    // of the whole packet, bytes
	Segments  int    // wire segments that it stands for; 0 when nothing is known
	Size      int    // bytes of payload of each but the last; valid iff Segments is not 1
	Worker    int
	Peer      string // "" for none
	Data      []byte
}

func align(n int) int { return (n + recordAlign - 1) &^ (recordAlign - 1) }

func putSkip(b []byte, n int) {
	binary.LittleEndian.PutUint32(b, uint32(n))
	b[4] = kindSkip
}

// recordSize is the length that a record begins with.
func recordSize(b []byte) int { return int(binary.LittleEndian.Uint32(b)) }

// recordLen is what a record with this much to carry takes.
func recordLen(peer, captured int) int { return align(recordHeader + peer + captured) }

// put writes a record's header and peer into b, which has the record's length, and returns where its captured bytes go.
func (r *Record) put(b []byte, kind uint8, captured int) []byte {
	binary.LittleEndian.PutUint32(b, uint32(len(b)))
	b[4], b[5], b[6], b[7] = kind, uint8(r.Interface), uint8(r.Verdict), uint8(r.Flags)
	binary.LittleEndian.PutUint64(b[8:], uint64(r.Time.UnixNano()))
	binary.LittleEndian.PutUint64(b[16:], r.Serial)
	binary.LittleEndian.PutUint64(b[24:], r.FlowID)
	binary.LittleEndian.PutUint32(b[32:], uint32(r.Length))
	binary.LittleEndian.PutUint32(b[36:], uint32(captured))
	binary.LittleEndian.PutUint16(b[40:], uint16(r.Segments))
	binary.LittleEndian.PutUint16(b[42:], uint16(r.Size))
	binary.LittleEndian.PutUint16(b[44:], uint16(r.Worker))
	b[46], b[47] = uint8(copy(b[recordHeader+captured:], r.Peer)), 0
	return b[recordHeader : recordHeader+captured]
}

// setLengths corrects the lengths in a record's header whose captured bytes do not lie behind it.
func setLengths(b []byte, record, captured int) {
	binary.LittleEndian.PutUint32(b, uint32(record))
	binary.LittleEndian.PutUint32(b[36:], uint32(captured))
}

// amend writes into a record what became of its packet. The peer's name is clipped to the room that was left for it.
func amend(b []byte, v packet.Verdict, m *memory) {
	b[6] = uint8(v)
	if m.known {
		b[7] |= uint8(FlagKnown)
	}
	binary.LittleEndian.PutUint64(b[24:], m.flow)
	if m.segments > 0 {
		binary.LittleEndian.PutUint16(b[40:], m.segments)
	}
	b[46] = uint8(copy(b[recordHeader+binary.LittleEndian.Uint32(b[36:]):], m.peer))
}

// appendRecord appends a record that carries data.
func appendRecord(b []byte, r *Record, kind uint8, data []byte) []byte {
	n := recordLen(len(r.Peer), len(data))
	start := len(b)
	b = append(b, make([]byte, n)...)
	copy(r.put(b[start:], kind, len(data)), data)
	return b
}

// An Event is what a Reader returns: exactly one of its fields is not zero.
type Event struct {
	Packet *Record
	Stats  *Statistics
	End    string // why the capture ended
}

// ErrCut says that a stream ended without saying why.
var ErrCut = errors.New("the daemon is gone")

// A Reader reads a stream.
type Reader struct {
	r    *bufio.Reader
	used int // bytes of the record that was handed out, which still lie in r
	last Record
}

// NewReader returns a Reader of a stream.
func NewReader(r io.Reader) *Reader { return &Reader{r: bufio.NewReaderSize(r, 2*maxRecord)} }

// Buffered returns whether a part of the next record is there already.
func (r *Reader) Buffered() bool { return r.r.Buffered() > r.used }

// Next returns the next event. It waits for it.
func (r *Reader) Next() (Event, error) {
	for {
		kind, body, err := r.record()
		if err != nil {
			return Event{}, err
		}
		switch kind {
		case kindSkip:
		case kindPacket:
			return Event{Packet: &r.last}, nil
		case kindStats:
			return Event{Stats: &Statistics{Interface: r.last.Interface, Time: r.last.Time, Received: r.last.Serial, Missed: r.last.FlowID}}, nil
		case kindEnd:
			return Event{End: string(body)}, nil
		default:
			return Event{}, fmt.Errorf("capture stream: record of kind %d: the daemon is of another version", kind)
		}
	}
}

// record reads one record into r.last. Its data is that of the buffer.
func (r *Reader) record() (kind uint8, data []byte, err error) {
	r.r.Discard(r.used) // it is there
	r.used = 0
	head, err := r.r.Peek(recordAlign)
	if err != nil {
		return 0, nil, cut(err)
	}
	n := recordSize(head)
	if kind = head[4]; kind == kindSkip && n >= recordAlign {
		_, err := r.r.Discard(n)
		return kind, nil, cut(err)
	}
	if n < recordHeader || n > maxRecord {
		return 0, nil, fmt.Errorf("capture stream: record of %d bytes: the daemon is of another version", n)
	}
	b, err := r.r.Peek(n)
	if err != nil {
		return 0, nil, cut(err)
	}
	r.used = n
	if data = r.last.get(b); data == nil {
		return 0, nil, fmt.Errorf("capture stream: a record of %d bytes contradicts itself: the daemon is of another version", n)
	}
	return kind, data, nil
}

func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrCut
	}
	return err
}

// get reads the fields of a record and returns its data.
func (r *Record) get(b []byte) []byte {
	*r = Record{
		Interface: int(b[5]), Verdict: packet.Verdict(b[6]), Flags: Flags(b[7]),
		Time:   time.Unix(0, int64(binary.LittleEndian.Uint64(b[8:]))),
		Serial: binary.LittleEndian.Uint64(b[16:]), FlowID: binary.LittleEndian.Uint64(b[24:]),
		Length:   int(binary.LittleEndian.Uint32(b[32:])),
		Segments: int(binary.LittleEndian.Uint16(b[40:])), Size: int(binary.LittleEndian.Uint16(b[42:])),
		Worker: int(binary.LittleEndian.Uint16(b[44:])),
	}
	captured, peer := binary.LittleEndian.Uint32(b[36:]), uint64(b[46])
	if uint64(len(b)) < recordHeader+uint64(captured)+peer {
		return nil
	}
	end := recordHeader + int(captured)
	r.Peer = string(b[end : end+int(peer)])
	r.Data = b[recordHeader:end:end]
	return r.Data
}
