package capture

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"github.com/tulle-net/tulle/scripts/need"
)

// TestFilterAgainstGopacket holds random filters on random packets against gopacket's decoder and the words of pcap-filter(7).
func TestFilterAgainstGopacket(t *testing.T) {
	r := seeded(t)
	packets := make([][]byte, 2000)
	for i := range packets {
		packets[i] = randomPacket(r, false)
	}
	matched, asked := 0, 0
	for range 300 {
		q := randomFilter(r, 3)
		f, err := ParseFilter(q.text)
		if err != nil {
			t.Fatalf("%s: %v", q.text, err)
		}
		for range 200 {
			b := pick(r, packets)
			want := decoded(b)
			got := Dissect(b, Ethernet, len(b))
			asked++
			if f.Match(&got) != q.ask(&want) {
				t.Fatalf("%s\n%x\ngot %t of %+v, gopacket %+v", q.text, b, f.Match(&got), got, want)
			}
			if f.Match(&got) {
				matched++
			}
		}
	}
	if share := float64(matched) / float64(asked); share < 0.2 || share > 0.8 {
		t.Errorf("%.2f of all packets match: the test tells nothing", share)
	}
}

// TestFilterAgainstTcpdump demands that tcpdump selects the same packets with the same text.
func TestFilterAgainstTcpdump(t *testing.T) {
	program, err := need.Debian(t.Context(), "tcpdump", "tcpdump")
	if err != nil {
		t.Fatal(err)
	}
	r := seeded(t)
	dir := t.TempDir()
	in := filepath.Join(dir, "in.pcap")
	packets := make([][]byte, 1000)
	for i := range packets {
		packets[i] = randomPacket(r, true)
	}
	writePcap(t, in, packets)
	for range 60 {
		q := randomFilter(r, 2)
		f, err := ParseFilter(q.text)
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, b := range packets {
			if h := Dissect(b, Ethernet, len(b)); f.Match(&h) {
				want = append(want, fmt.Sprintf("%x", b))
			}
		}
		out := filepath.Join(dir, "out.pcap")
		if said, err := exec.Command(program, "-Z", "root", "-r", in, "-w", out, q.text).CombinedOutput(); err != nil {
			if strings.Contains(string(said), "expression rejects all packets") {
				continue
			}
			t.Fatalf("tcpdump %q: %v: %s", q.text, err, said)
		}
		if got := readPcap(t, out); strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Fatalf("%s: tcpdump selects %d packets, this filter %d", q.text, len(got), len(want))
		}
	}
}

func writePcap(t *testing.T, path string, packets [][]byte) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := pcapgo.NewWriter(f)
	w.WriteFileHeader(MaxSnapLen, layers.LinkTypeEthernet)
	for i, b := range packets {
		w.WritePacket(gopacket.CaptureInfo{Timestamp: time.Unix(int64(i), 0), CaptureLength: len(b), Length: len(b)}, b)
	}
}

func readPcap(t *testing.T, path string) (all []string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := pcapgo.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for {
		b, _, err := r.ReadPacketData()
		if err != nil {
			return all
		}
		all = append(all, fmt.Sprintf("%x", b))
	}
}

// TestFilterErrors demands that what is not supported is refused, by name.
func TestFilterErrors(t *testing.T) {
	for text, token := range map[string]string{
		"tcp[13] & 2 != 0": `"["`, "frob": `"frob"`, "host": "at the end", "host example.org": `"example.org"`, "tcp and": "at the end",
		"tcp and and udp": `"and"`, "(tcp": "at the end", "tcp)": `")"`, "port http": `"http"`, "port 70000": `"70000"`, "portrange 9-1": `"9-1"`,
		"port 1-2": `"1-2"`, "net 10.0.0.1/8": "write 10.0.0.0/8", "vlan 5": `"vlan"`, "tcp host 10.0.0.1": "tcp cannot stand in front of host",
		"ip port 80": "ip cannot stand in front of port", "ether host 10.0.0.1": `"10.0.0.1"`, "ether": "host is expected behind ether", "src proto 6": "proto",
		"less": "at the end", "ip 10.0.0.1": `"10.0.0.1"`, "udp port 53 'x'": `"'"`, "gateway foo": `"gateway"`, "port": "at the end", "len > 5": `"len"`,
		"proto frob": `"frob"`, "ether proto 6": "ether cannot", "not": "at the end", "\xe2": `"\xe2"`, strings.Repeat("(", 100) + "tcp": "nested deeper", strings.Repeat("x", 5000): "5000 bytes",
	} {
		f, err := ParseFilter(text)
		if err == nil || f != nil || !strings.Contains(err.Error(), token) {
			t.Errorf("%q: %v, want an error that names %s", text, err, token)
		}
	}
	if f, err := ParseFilter("  "); f != nil || err != nil {
		t.Errorf("an empty filter: %v, %v", f, err)
	}
}

// FuzzFilter demands of whatever is taken that its negation selects the others.
func FuzzFilter(f *testing.F) {
	for _, s := range []string{"tcp port 80 or 443", "not (src net 10/8 and ip6)", "ether src host 02:00:00:00:00:01", `ip proto \tcp`, "less 5", "src and dst host fd00::1", "\xe2"} {
		f.Add(s, []byte{})
	}
	f.Fuzz(func(t *testing.T, text string, b []byte) {
		one, err := ParseFilter(text)
		if err != nil || one == nil {
			return
		}
		not, err := ParseFilter("not (" + text + ")")
		if err != nil {
			if strings.Contains(err.Error(), "nested deeper") || strings.Contains(err.Error(), "bytes (allowed") {
				return
			}
			t.Fatal(err)
		}
		for _, link := range []LinkType{Ethernet, RawIP} {
			if h := Dissect(b, link, len(b)); one.Match(&h) == not.Match(&h) {
				t.Fatalf("%q and its negation say the same", text)
			}
		}
	})
}

// FuzzDissect holds what is read of any bytes against gopacket, where that reads them, and demands that a cut packet never says
// anything else than the whole one.
func FuzzDissect(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 30 {
		f.Add(randomPacket(r, false), uint8(20))
	}
	f.Fuzz(func(t *testing.T, b []byte, keep uint8) {
		whole := Dissect(b, Ethernet, len(b))
		cut := Dissect(b[:min(len(b), int(keep))], Ethernet, len(b))
		if cut.HasPorts && (cut.SrcPort != whole.SrcPort || cut.DstPort != whole.DstPort) || cut.Src.IsValid() && cut.Src != whole.Src {
			t.Fatalf("cut to %d: %+v, whole %+v", keep, cut, whole)
		}
		p := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.DecodeOptions{NoCopy: true})
		if ip, ok := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4); ok && p.ErrorLayer() == nil && len(p.Layers()) > 1 && p.Layers()[1] == gopacket.Layer(ip) && ip.Version == 4 {
			if !whole.IP || whole.Src.String() != ip.SrcIP.String() || whole.Proto != uint8(ip.Protocol) {
				t.Fatalf("%+v, gopacket %v", whole, ip)
			}
		}
	})
}

// TestFilterAllocates nothing on the packet path.
func TestFilterAllocates(t *testing.T) {
	f, err := ParseFilter("not (tcp port 80 or host fd00::1) and net 10.0.0.0/8")
	if err != nil {
		t.Fatal(err)
	}
	b := randomPacket(rand.New(rand.NewPCG(1, 1)), true)
	if n := testing.AllocsPerRun(100, func() {
		h := Dissect(b, Ethernet, len(b))
		f.Match(&h)
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
