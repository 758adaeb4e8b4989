package netconf

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var byValue = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

// mustParse fails the test on an error or a warning.
func mustParse(t *testing.T, in string) *Config {
	t.Helper()
	c, warnings, err := Parse("n.json", []byte(in))
	if err != nil || len(warnings) > 0 {
		t.Fatalf("%v, warnings %v", err, warnings)
	}
	return c
}

func TestAnnotated(t *testing.T) {
	got, warnings, err := Load("testdata/annotated.json")
	if err != nil || len(warnings) > 0 {
		t.Fatalf("%v, warnings %v", err, warnings)
	}
	want := &Config{
		EnableIPv4: true,
		Network:    netip.MustParsePrefix("10.5.0.0/16"), SubnetLen: 24,
		SubnetMin: netip.MustParseAddr("10.5.10.0"), SubnetMax: netip.MustParseAddr("10.5.99.0"),
		Backend: Backend{Type: TypeVXLAN, VXLAN: VXLAN{VNI: 1, Port: 8472, DirectRouting: true}},
	}
	if d := cmp.Diff(want, got, byValue); d != "" {
		t.Error(d)
	}
}

func TestDefault(t *testing.T) {
	want := mustParse(t, `{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}`)
	if d := cmp.Diff(want, Default(), byValue); d != "" {
		t.Error(d)
	}
}

// poolOf returns the pool of f in c.
func poolOf(f *family, c *Config) pool {
	if f == ipv6 {
		return pool{c.IPv6Network, c.IPv6SubnetLen, c.IPv6SubnetMin, c.IPv6SubnetMax}
	}
	return pool{c.Network, c.SubnetLen, c.SubnetMin, c.SubnetMax}
}

// subnetDefaults has the figures of flannel's rules: Network, SubnetLen, SubnetMin, SubnetMax.
var subnetDefaults = []struct{ keys, want string }{
	{`"Network": "10.244.0.0/16"`, "10.244.0.0/16 24 10.244.1.0 10.244.255.0"},
	{`"Network": "10.0.0.0/8"`, "10.0.0.0/8 24 10.0.1.0 10.255.255.0"},
	{`"Network": "0.0.0.0/1"`, "0.0.0.0/1 24 0.0.1.0 127.255.255.0"},
	{`"Network": "255.255.0.0/16"`, "255.255.0.0/16 24 255.255.1.0 255.255.255.0"},
	{`"Network": "10.0.0.0/22"`, "10.0.0.0/22 24 10.0.1.0 10.0.3.0"},
	{`"Network": "10.0.0.0/23"`, "10.0.0.0/23 25 10.0.0.128 10.0.1.128"},
	{`"Network": "10.0.0.0/28"`, "10.0.0.0/28 30 10.0.0.4 10.0.0.12"},
	{`"Network": "10.0.0.0/8", "SubnetLen": 20`, "10.0.0.0/8 20 10.0.16.0 10.255.240.0"},
	{`"Network": "10.0.0.0/8", "SubnetLen": 0`, "10.0.0.0/8 24 10.0.1.0 10.255.255.0"},
	{`"Network": "10.0.0.0/8", "SubnetLen": null, "SubnetMin": null`, "10.0.0.0/8 24 10.0.1.0 10.255.255.0"},
	{`"Network": "10.0.0.0/8", "SubnetMin": "0.0.0.0", "SubnetMax": "0.0.0.0"`, "10.0.0.0/8 24 10.0.1.0 10.255.255.0"},
	{`"Network": "10.0.0.0/8", "SubnetMin": "10.0.0.0"`, "10.0.0.0/8 24 10.0.0.0 10.255.255.0"},
	{`"Network": "10.0.0.0/8", "SubnetMin": "10.9.0.0/24", "SubnetMax": "10.9.0.0"`, "10.0.0.0/8 24 10.9.0.0 10.9.0.0"},
	{`"NETWORK": "10.0.0.0/8", "\u0073ubnetlen": 30`, "10.0.0.0/8 30 10.0.0.4 10.255.255.252"},
	{`"EnableIPv6": true, "IPv6Network": "fc00::/48"`, "fc00::/48 64 fc00:0:0:1:: fc00:0:0:ffff::"},
	{`"EnableIPv6": true, "IPv6Network": "fc00::/62"`, "fc00::/62 64 fc00:0:0:1:: fc00:0:0:3::"},
	{`"EnableIPv6": true, "IPv6Network": "fc00::/63"`, "fc00::/63 65 fc00::8000:0:0:0 fc00:0:0:1:8000::"},
	{`"EnableIPv6": true, "IPv6Network": "fc00::/124"`, "fc00::/124 126 fc00::4 fc00::c"},
	{`"EnableIPv6": true, "IPv6Network": "ffff::/16", "IPv6SubnetLen": 18`, "ffff::/16 18 ffff:4000:: ffff:c000::"},
	{`"EnableIPv6": true, "IPv6Network": "fc00::/48", "IPv6SubnetMin": "::", "IPv6SubnetMax": "fc00:0:0:9::/64"`,
		"fc00::/48 64 fc00:0:0:1:: fc00:0:0:9::"},
}

func TestSubnetDefaults(t *testing.T) {
	for _, tt := range subnetDefaults {
		f, off, in := ipv4, ipv6, "{"+tt.keys+"}"
		if strings.Contains(tt.keys, "IPv6Network") {
			f, off, in = ipv6, ipv4, `{"EnableIPv4": false, `+tt.keys+"}"
		}
		c := mustParse(t, in)
		p := poolOf(f, c)
		if got := fmt.Sprintf("%v %d %v %v", p.network, p.length, p.min, p.max); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.keys, got, tt.want)
		}
		if got := poolOf(off, c); got != (pool{}) {
			t.Errorf("%s: the family that is off has %v", tt.keys, got)
		}
	}
}

func TestBackends(t *testing.T) {
	psk := strings.Repeat("A", 43) + "="
	for _, tt := range []struct {
		in   string
		want Backend
	}{
		{`null: 0`, Backend{Type: "udp", UDP: UDP{Port: 8285}}},
		{`{"Type": "vxlan"}`, Backend{Type: "vxlan", VXLAN: VXLAN{VNI: 1, Port: 8472}}},
		{`{"Type": "VxLan", "VNI": 0, "Port": 0, "MTU": 0}`, Backend{Type: "vxlan", VXLAN: VXLAN{Port: 8472}}},
		{`{"type": "vxlan", "vni": 16777215, "port": 4789, "mtu": 118, "gbp": true, "learning": true, "DIRECTROUTING": true, "MacPrefix": "0E-2A", "Name": "x"}`,
			Backend{Type: "vxlan", VXLAN: VXLAN{VNI: 1<<24 - 1, Port: 4789, MTU: 118, GBP: true, Learning: true, DirectRouting: true, MacPrefix: "0E-2A"}}},
		{`{"Type": "udp"}`, Backend{Type: "udp", UDP: UDP{Port: 8285}}},
		{`{"Type": "udp", "Port": 7890}`, Backend{Type: "udp", UDP: UDP{Port: 7890}}},
		{`{"Type": "udp", "Port": 0}`, Backend{Type: "udp", UDP: UDP{Port: 8285}}},
		{`{"Type": "host-gw"}`, Backend{Type: "host-gw"}},
		{`{"Type": "alloc"}`, Backend{Type: "alloc"}},
		{`{"Type": "ipip", "Directrouting": true}`, Backend{Type: "ipip", IPIP: IPIP{DirectRouting: true}}},
		{`{"Type": "wireguard"}`, Backend{Type: "wireguard", WireGuard: WireGuard{ListenPort: 51820, ListenPortV6: 51821, Mode: "separate"}}},
		{`{"Type": "wireguard", "ListenPort": 1, "ListenPortV6": 2, "MTU": 1500, "PSK": "` + psk + `", "PersistentKeepaliveInterval": 25, "Mode": "auto"}`,
			Backend{Type: "wireguard", WireGuard: WireGuard{1, 2, 1500, psk, 25, "auto"}}},
		{`{"Type": "ipsec", "UDPEncap": true, "ESPProposal": "x", "PSK": "y"}`, Backend{Type: "ipsec"}},
		{`{"Type": "extension", "PreStartupCommand": "a", "PostStartupCommand": "b", "SubnetAddCommand": "c", "SubnetRemoveCommand": "d"}`, Backend{Type: "extension"}},
		{`{"Type": "tencent-vpc", "AccessKeyID": "a", "AccessKeySecret": "b"}`, Backend{Type: "tencent-vpc"}},
	} {
		in := `{"Network": "10.244.0.0/16", "Backend": ` + tt.in + `}`
		if tt.in == `null: 0` {
			in = `{"Network": "10.244.0.0/16"}`
		}
		c := mustParse(t, in)
		if d := cmp.Diff(tt.want, c.Backend); d != "" {
			t.Errorf("%s: %s", tt.in, d)
		}
		checkRoundTrip(t, c)
	}
}

// checkRoundTrip: a Config survives being written and read again.
func checkRoundTrip(t *testing.T, c *Config) {
	t.Helper()
	out, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(c, mustParse(t, string(out)), byValue); d != "" {
		t.Fatalf("written as %s: %s", out, d)
	}
}

func TestWarnings(t *testing.T) {
	const v4 = "{\"Network\": \"10.244.0.0/16\",\n"
	for _, tt := range []struct {
		in   string
		want []string
	}{
		{v4 + `"Subnetlength": 24, "SubnetLne": 24, "EnableNFTable": true, "comment": 1}`, []string{
			"n.json:2:1: Subnetlength: not a key of net-conf.json: ignored",
			"n.json:2:21: SubnetLne: not a key of net-conf.json: ignored; did you mean SubnetLen?",
			"n.json:2:38: EnableNFTable: not a key of net-conf.json: ignored; did you mean EnableNFTables?",
			"n.json:2:61: comment: not a key of net-conf.json: ignored",
		}},
		{"{\"Netwrok\": \"10.244.0.0/16\"}", []string{"n.json:1:2: Netwrok: not a key of net-conf.json: ignored; did you mean Network?"}},
		{v4 + `"siblings": [` + strings.Repeat("{}, ", maxDepth) + `[]]}`, []string{"n.json:2:1: siblings: not a key of net-conf.json: ignored"}},
		{v4 + `"bad\nkey": {"a": [{}, 1]}}`, []string{`n.json:2:1: "bad\nkey": not a key of net-conf.json: ignored`}},
		{v4 + `"x": 0, "Backend": {"Type": "vxlan", "Prot": 1}, "y\\": 0}`, []string{
			"n.json:2:1: x: not a key of net-conf.json: ignored",
			"n.json:2:38: Backend.Prot: not an option of the vxlan backend: ignored; did you mean Backend.Port?",
			`n.json:2:50: y\: not a key of net-conf.json: ignored`,
		}},
		{v4 + `"Backend": {"Type": "host-gw", "DirectRouting": true}}`, []string{"n.json:2:32: Backend.DirectRouting: not an option of the host-gw backend: ignored"}},
		{"{\"Network\": \"10.244.7.9/16\"}", []string{"n.json:1:13: Network: 10.244.7.9/16: host bits are set: taken as 10.244.0.0/16, as flannel does"}},
		{v4 + `"IPv6Network": "fc00::/48"}`, []string{"n.json:2:16: IPv6Network: fc00::/48: ignored: EnableIPv6 is not set to true"}},
		{v4 + `"EnableIPv6": false, "IPv6Network": "fc00::/48", "IPv6SubnetLen": 999}`, nil},
		{"\ufeff// a byte-order mark\r\n{\"Network\": \"10.244.0.0/16\"}\r\n", nil},
	} {
		_, warnings, err := Parse("n.json", []byte(tt.in))
		if refused := strings.Contains(tt.in, "Netwrok"); refused != (err != nil) {
			t.Errorf("%s: %v", tt.in, err)
		}
		var got []string
		for _, w := range warnings {
			got = append(got, w.String())
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s: %s", tt.in, d)
		}
	}
}

// TestManyUnknownKeys: a file of another kind, as large as it may be, costs little and says little.
func TestManyUnknownKeys(t *testing.T) {
	var b strings.Builder
	b.WriteString(`{"Network": "10.244.0.0/16"`)
	for i := 0; b.Len() < maxSize-20; i++ {
		fmt.Fprintf(&b, ",\n%q:0", fmt.Sprintf("%x", i))
	}
	_, warnings, err := Parse("n.json", []byte(b.String()+"}"))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(warnings); n != maxWarnings+1 {
		t.Errorf("%d warnings", n)
	}
	if got, want := warnings[maxWarnings].String(), "n.json:22:1: more warnings, not shown"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
