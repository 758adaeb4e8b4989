package capture

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"pgregory.net/rapid"
)

// A written is a file's blocks as a test wrote them, and where each ends.
type written struct {
	bytes  []byte
	ends   []int
	blocks []Block
	at     []int // for each of blocks: its place in ends
}

func (w *written) end() { w.ends = append(w.ends, len(w.bytes)) }

// writeFile writes a file of two interfaces, on which packets and statistics alternate.
func writeFile(blocks []Block) *written {
	w := &written{blocks: blocks}
	w.bytes = AppendSection(nil, Section{Application: "tulle", OS: "linux", Comment: "a test"})
	w.end()
	for _, i := range []Interface{{Wire, "eth0", "the wire", Ethernet}, {Encap, "encap", "", RawIP}} {
		w.bytes = AppendInterface(w.bytes, i, 0, "udp")
		w.end()
	}
	for i := range blocks {
		w.bytes = AppendPacket(w.bytes, &blocks[i])
		w.at = append(w.at, len(w.ends))
		w.end()
		w.bytes = AppendStatistics(w.bytes, &Statistics{Interface: i % 2, Time: blocks[i].Time, Received: uint64(i), Missed: 3, Comment: "x"})
		w.end()
	}
	return w
}

// readFile reads with gopacket as much as there is.
func readFile(b []byte) (got []Block, reader *pcapgo.NgReader, err error) {
	if reader, err = pcapgo.NewNgReader(bytes.NewReader(b), pcapgo.NgReaderOptions{WantMixedLinkType: true}); err != nil {
		return nil, nil, err
	}
	for {
		data, ci, err := reader.ReadPacketData()
		if err != nil {
			return got, reader, err
		}
		got = append(got, Block{Interface: ci.InterfaceIndex, Time: ci.Timestamp, Data: data, Length: ci.Length})
	}
}

var anyBlock = rapid.Custom(func(t *rapid.T) Block {
	b := Block{
		Interface: rapid.IntRange(0, 1).Draw(t, "interface"), Time: time.Unix(0, rapid.Int64Range(0, 1<<62).Draw(t, "time")).UTC(),
		Data: rapid.SliceOfN(rapid.Byte(), 1, 70).Draw(t, "data"), Direction: Direction(rapid.IntRange(0, 2).Draw(t, "direction")),
		Comment: []byte(rapid.StringN(0, 40, 120).Draw(t, "comment")),
	}
	b.Length = len(b.Data) + rapid.IntRange(0, 100).Draw(t, "cut")
	return b
})

// plain is what gopacket reads of a block.
func plain(blocks []Block) (out []Block) {
	for _, b := range blocks {
		out = append(out, Block{Interface: b.Interface, Time: b.Time, Data: b.Data, Length: b.Length})
	}
	return out
}

// TestFileRoundTrip writes random packets and reads them with gopacket.
func TestFileRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		blocks := rapid.SliceOfN(anyBlock, 1, 5).Draw(t, "blocks")
		got, r, _ := readFile(writeFile(blocks).bytes)
		for i := range got {
			got[i].Time = got[i].Time.UTC()
		}
		if d := cmp.Diff(plain(blocks), got); d != "" {
			t.Fatal(d)
		}
		if r.NInterfaces() != 2 || r.SectionInfo().Application != "tulle" || r.SectionInfo().Comment != "a test" {
			t.Fatalf("%d interfaces, section %+v", r.NInterfaces(), r.SectionInfo())
		}
		wire, _ := r.Interface(0)
		raw, _ := r.Interface(1)
		if wire.Name != "eth0" || wire.Description != "the wire" || wire.LinkType != layers.LinkTypeEthernet || raw.LinkType != layers.LinkTypeRaw || wire.Filter != "udp" {
			t.Fatalf("interfaces %+v %+v", wire, raw)
		}
		if wire.Statistics.PacketsDropped != 3 || wire.Statistics.PacketsReceived != uint64((len(blocks)-1)/2*2) {
			t.Fatalf("statistics %+v", wire.Statistics)
		}
	})
}

// TestFileCut cuts a file at every byte: what is whole is read.
func TestFileCut(t *testing.T) {
	var blocks []Block
	for i := range 5 {
		blocks = append(blocks, Block{Interface: i % 2, Time: time.Unix(int64(i), 7).UTC(), Data: bytes.Repeat([]byte{byte(i)}, 20+i), Length: 100, Comment: []byte("packet")})
	}
	w := writeFile(blocks)
	for cut := w.ends[0]; cut <= len(w.bytes); cut++ {
		want := 0
		for i := range blocks {
			if w.ends[w.at[i]] <= cut {
				want++
			}
		}
		got, _, err := readFile(w.bytes[:cut])
		if len(got) != want {
			t.Fatalf("cut at %d of %d: %d packets read (%v), want %d", cut, len(w.bytes), len(got), err, want)
		}
	}
}

// FuzzFile demands that any packet and comment come back, whatever they are.
func FuzzFile(f *testing.F) {
	f.Add([]byte("data"), "comment", uint32(7), int64(1))
	f.Add([]byte{0}, "", uint32(0), int64(1<<62))
	f.Fuzz(func(t *testing.T, data []byte, comment string, more uint32, ns int64) {
		if len(data) == 0 || len(data) > MaxSnapLen || ns < 0 || ns > 1<<62 {
			return
		}
		b := Block{Time: time.Unix(0, ns).UTC(), Data: data, Length: len(data) + int(more>>4), Comment: []byte(comment)}
		got, _, _ := readFile(writeFile([]Block{b, b}).bytes)
		for i := range got {
			got[i].Time = got[i].Time.UTC()
		}
		if d := cmp.Diff(plain([]Block{b, b}), got); d != "" {
			t.Fatal(d)
		}
	})
}
