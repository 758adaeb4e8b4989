package netconf

import (
	"bytes"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"unicode/utf8"
)

func seeds(f *testing.F) {
	annotated, err := os.ReadFile("testdata/annotated.json")
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{
		string(annotated),
		`{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "VNI": 1, "MTU": 1450, "Directrouting": true}}`,
		`{"Network": "10.0.0.0/8", "SubnetLen": 20, "SubnetMin": "10.10.0.0", "SubnetMax": "10.99.0.0", "Backend": {"Type": "udp", "Port": 7890}}`,
		`{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fc00::/48", "IPv6SubnetLen": 64, "Backend": {"Type": "wireguard", "Mode": "auto"}}`,
		`{"EnableIPv6": true, "Network": "10.1.2.3/28", "IPv6Network": "2001:db8::/124", "IPv6SubnetMax": "2001:db8::c/126", "x": [1.5e3, null, {}, "\u00e9"]}`,
		`{"network": "10.0.0.0/23", "SUBNETMIN": null, "Backend": {"Type": "host-gw"},}`,
	} {
		f.Add([]byte(s))
	}
}

// FuzzRead: without comments the reader accepts what encoding/json does and sees the same in it.
func FuzzRead(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		if !utf8.Valid(data) || bytes.IndexByte(data, '/') >= 0 {
			return
		}
		v, err := read(data)
		if err != nil && strings.HasPrefix(err.reason, "nested deeper") {
			return
		}
		if valid := json.Valid(data); valid != (err == nil) {
			t.Fatalf("json.Valid says %t, read %+v", valid, err)
		}
		if err == nil {
			sameAsJSON(t, v, data[v.start:v.end])
		} else if err.at < 0 || err.at > len(data) || err.reason == "" {
			t.Fatalf("%+v", err)
		}
	})
}

// sameAsJSON compares a value with what encoding/json makes of its text.
func sameAsJSON(t *testing.T, v value, text []byte) {
	var want any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&want); err != nil {
		t.Fatalf("%q is the text of %+v: %v", text, v, err)
	}
	switch want := want.(type) {
	case string:
		if v.kind != kindString || v.text != want {
			t.Fatalf("%q read as %+v", want, v)
		}
	case map[string]any:
		last := make(map[string]value) // encoding/json takes the last of equal keys
		for _, m := range v.members {
			last[m.key] = m.value
		}
		if v.kind != kindObject || len(last) != len(want) {
			t.Fatalf("%q read as %+v", text, v)
		}
		for key, element := range want {
			m, ok := last[key]
			if _, isArray := element.([]any); !ok || isArray != (m.kind == kindArray) {
				t.Fatalf("key %q of %q read as %+v", key, text, m)
			}
		}
	case []any:
		if v.kind != kindArray {
			t.Fatalf("%q read as %+v", text, v)
		}
	default:
		if v.kind > kindNumber || v.text != string(text) {
			t.Fatalf("%q read as %+v", text, v)
		}
	}
}

// FuzzParse: an error is one line that points into the file; a Config survives being written and
// read again; and it is what flannel makes of the file, where flannel can read it.
func FuzzParse(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		c, warnings, err := Parse("n.json", data)
		for _, w := range warnings {
			checkMessage(t, Error(w), data)
		}
		if err != nil {
			checkMessage(t, *err.(*Error), data)
			return
		}
		checkRoundTrip(t, c)
		if json.Valid(data) {
			compareWithFlannel(t, c, data)
		}
	})
}

func checkMessage(t *testing.T, e Error, data []byte) {
	lines := strings.Split(strings.TrimPrefix(string(data), "\ufeff"), "\n")
	if e.Line == 0 {
		return
	}
	if strings.ContainsAny(e.Error(), "\n\r") || e.Reason == "" || e.File == "" {
		t.Fatalf("%q", e.Error())
	}
	if e.Line > len(lines) || e.Col < 1 || e.Col > utf8.RuneCountInString(lines[e.Line-1])+1 {
		t.Fatalf("%q points outside the file", e.Error())
	}
}

// flannelConfig is the file as flannel's encoding/json sees it. Addresses are left as text: their
// forms are compared by meaning.
type flannelConfig struct {
	EnableIPv4, EnableIPv6, EnableNFTables bool
	Network, IPv6Network                   string
	SubnetLen, IPv6SubnetLen               uint
	SubnetMin, SubnetMax                   string
	IPv6SubnetMin, IPv6SubnetMax           string
	Backend                                struct {
		Type     string
		VNI      int
		Port     int
		MTU      int
		GBP      bool
		Learning bool
	}
}

func compareWithFlannel(t *testing.T, c *Config, data []byte) {
	w := flannelConfig{EnableIPv4: true}
	w.Backend.Type = TypeUDP
	w.Backend.VNI = 1
	if err := json.Unmarshal(data, &w); err != nil {
		// Options that the type at hand does not have are not read.
		if strings.Contains(err.Error(), "Backend.") {
			return
		}
		t.Fatalf("accepted, but not by encoding/json: %v", err)
	}
	if c.EnableIPv4 != w.EnableIPv4 || c.EnableIPv6 != w.EnableIPv6 || c.EnableNFTables != w.EnableNFTables {
		t.Fatalf("switches differ: %+v and %+v", c, w)
	}
	if c.EnableIPv4 {
		compareFamily(t, poolOf(ipv4, c), w.Network, w.SubnetLen, w.SubnetMin, w.SubnetMax, 24)
	}
	if c.EnableIPv6 {
		compareFamily(t, poolOf(ipv6, c), w.IPv6Network, w.IPv6SubnetLen, w.IPv6SubnetMin, w.IPv6SubnetMax, 64)
	}
	if c.Backend.Type != strings.ToLower(w.Backend.Type) {
		t.Fatalf("backend %q and %q", c.Backend.Type, w.Backend.Type)
	}
	if c.Backend.Type == TypeVXLAN {
		if w.Backend.Port == 0 {
			w.Backend.Port = 8472
		}
		want := VXLAN{uint32(w.Backend.VNI), uint16(w.Backend.Port), w.Backend.MTU, w.Backend.GBP, w.Backend.Learning, false, ""}
		got := c.Backend.VXLAN
		got.DirectRouting, got.MacPrefix = false, ""
		if got != want {
			t.Fatalf("%+v and %+v", got, want)
		}
	}
}

// compareFamily works flannel's rules out anew, with package net and 128-bit sums.
func compareFamily(t *testing.T, p pool, network string, length uint, from, to string, usual int) {
	_, n, err := net.ParseCIDR(network)
	if err != nil || n.String() != p.network.String() {
		t.Fatalf("network %q taken as %v, want %v (%v)", network, p.network, n, err)
	}
	ones, _ := n.Mask.Size()
	want := int(length)
	if want == 0 && ones <= usual-2 {
		want = usual
	} else if want == 0 {
		want = ones + 2
	}
	if p.length != want {
		t.Fatalf("length %d, want %d", p.length, want)
	}
	base, size := toInt(p.network.Addr()), subnetSize(p)
	check := func(what, text string, got netip.Addr, unset netip.Addr) {
		text, _, _ = strings.Cut(text, "/")
		if a, err := netip.ParseAddr(text); err == nil && !a.IsUnspecified() {
			unset = a
		}
		if got != unset {
			t.Fatalf("%s %q taken as %v, want %v", what, text, got, unset)
		}
	}
	check("min", from, p.min, toAddr(sum(base, size), p.network))
	end := sum(base, shifted(p.network.Addr().BitLen()-ones))
	check("max", to, p.max, toAddr(end.Sub(end, size), p.network))
}
