package router

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"
)

// A hop lowers the TTL by one and leaves a header that gopacket would have written; nothing else changes.
func TestHop(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ip := layers.IPv4{Version: 4, TTL: rapid.Byte().Draw(t, "ttl"), Id: rapid.Uint16().Draw(t, "id"), TOS: rapid.Byte().Draw(t, "tos"),
			Protocol: layers.IPProtocolUDP, SrcIP: rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "src"), DstIP: rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "dst")}
		payload := gopacket.Payload(rapid.SliceOfN(rapid.Byte(), 0, 50).Draw(t, "payload"))
		write := func() []byte {
			b := gopacket.NewSerializeBuffer()
			if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, &ip, payload); err != nil {
				t.Fatal(err)
			}
			return bytes.Clone(b.Bytes())
		}
		got, ttl := write(), ip.TTL
		ok := hop(got)
		if ok != (ttl > 1) {
			t.Fatalf("TTL %d: may go on: %t", ttl, ok)
		}
		if !ok {
			return
		}
		ip.TTL--
		// 0 and 0xffff are the same sum.
		if want := write(); !bytes.Equal(got, want) && !(got[10] == 0xff && got[11] == 0xff && want[10] == 0 && want[11] == 0) {
			t.Errorf("got %x, want %x", got, want)
		}
	})
	for _, bad := range [][]byte{nil, make([]byte, 20), append([]byte{0x60}, make([]byte, 39)...), append([]byte{0x45}, make([]byte, 18)...)} {
		if hop(bad) {
			t.Errorf("%x may go on", bad)
		}
	}
}

// Every checksum there is, against the sum over the whole header.
func TestHopChecksum(t *testing.T) {
	for id := range 1 << 16 {
		b := []byte{0x45, 0, 0, 20, byte(id >> 8), byte(id), 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2}
		sum := ^headerSum(b)
		b[10], b[11] = byte(sum>>8), byte(sum)
		if !hop(b) || headerSum(b) != 0xffff {
			t.Fatalf("ID %#x: %x", id, b)
		}
	}
}

func headerSum(b []byte) uint16 {
	sum := 0
	for i := 0; i < len(b); i += 2 {
		sum += int(b[i])<<8 | int(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

func TestRoutes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "peers.json")
	r := &router{peers: path}
	if err := r.loadRoutes(); err == nil {
		t.Error("no file, and no error")
	}
	os.WriteFile(path, []byte(`[{"publicIP":"192.168.77.2","subnet":"10.244.2.0/24"},{"publicIP":"192.168.77.3","subnet":"10.244.3.0/24"}]`), 0o600)
	if err := r.loadRoutes(); err != nil {
		t.Fatal(err)
	}
	for to, want := range map[string]string{"10.244.2.0": "192.168.77.2", "10.244.3.255": "192.168.77.3", "10.244.4.1": "", "192.168.77.2": ""} {
		packet := make([]byte, 20)
		addr := netip.MustParseAddr(to).As4()
		copy(packet[16:], addr[:])
		got, ok := r.route(packet)
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("%s: %v, %t, want %q", to, got, ok, want)
		}
	}
}

func TestMainErrors(t *testing.T) {
	if err := Main("fire", nil); err == nil || !strings.Contains(err.Error(), "have: water, wireguard") {
		t.Errorf("%v", err)
	}
	for _, args := range [][]string{{"-frobnicate"}, {"-mtu", "x"}, {"-peers", "/nonexistent"}} {
		if err := Main("water", args); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
}
