package netconf

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Keys under test are on the second line of the file.
const (
	typeList = "vxlan, udp, host-gw, wireguard, ipip, alloc, ipsec, extension, tencent-vpc"
	net4     = "an IPv4 prefix from /1 to /28, such as 10.244.0.0/16"
	net6     = "an IPv6 prefix from /1 to /124, such as fc00::/48"
	onV4     = "{\"Network\": \"10.244.0.0/16\",\n"
	onV6     = "{\"EnableIPv4\": false, \"EnableIPv6\": true, \"IPv6Network\": \"fc00::/48\",\n"
)

// refused has the exact text of every error.
var refused = []struct{ name, in, want string }{
	// The file as a whole.
	{"empty", "", `n.json: empty: expected at least {"Network": "10.244.0.0/16"}`},
	{"only a comment", " // nothing\n", `n.json: empty: expected at least {"Network": "10.244.0.0/16"}`},
	{"too large", "{}" + strings.Repeat(" ", 1<<20), `n.json: larger than 1 MiB: not a net-conf.json`},
	{"not UTF-8", "{\"Netw\xff", `n.json:1:7: not UTF-8`},
	{"UTF-16", "\xff\xfe{\x00", `n.json:1:1: not UTF-8`},
	{"array", `[{}]`, `n.json:1:1: expected an object in { }, found an array`},
	{"null", `null`, `n.json:1:1: expected an object in { }, found null`},

	// Syntax.
	{"missing comma", "{\n  \"Network\": \"10.5.0.0/16\",\n  \"SubnetLen\": 24,\n  \"SubnetMin\": \"10.5.1.0\",\n  \"SubnetMax\": \"10.5.9.0\" // last\n  \"Backend\": {}\n}",
		`n.json:6:3: expected ',' after the value of "SubnetMax" on line 5`},
	{"missing comma inside Backend", "{\"Backend\": {\"Type\": \"udp\"\n\"Port\": 1}}", `n.json:2:1: expected ',' after the value of "Type" on line 1`},
	{"junk after a value", "{\"SubnetLen\": 24;\n", `n.json:1:17: expected ',' or '}' after the value of "SubnetLen" on line 1, found ';'`},
	{"word after a value", "{\"Backend\": {} Port", `n.json:1:16: expected ',' or '}' after the value of "Backend" on line 1, found Port`},
	{"trailing comma", "{\"SubnetLen\": 24, // last\n}", `n.json:1:17: trailing ',' after the value of "SubnetLen" on line 1`},
	{"trailing comma in an array", `{"a": [1, 2, ]}`, `n.json:1:12: trailing ',' after the array element on line 1`},
	{"missing comma in an array", `{"a": [1 2]}`, `n.json:1:10: expected ',' or ']' after the array element on line 1, found 2`},
	{"only a comma", `{,}`, `n.json:1:2: expected a key in double quotes, found ','`},
	{"two commas", `{"a": 1,,}`, `n.json:1:9: expected a key in double quotes, found ','`},
	{"bare key", `{Network: 1}`, `n.json:1:2: expected a key in double quotes, found Network`},
	{"single quotes", `{'Network': 1}`, `n.json:1:2: expected a key in double quotes, found '\''`},
	{"typographic quotes", "{“Network”: 1}", `n.json:1:2: expected a key in double quotes, found '“'`},
	{"missing colon", `{"Network" "10.5.0.0/16"}`, `n.json:1:12: expected ':' after the key "Network", found '"'`},
	{"missing value", "{\"Network\":\n}", `n.json:2:1: expected the value of "Network", found '}'`},
	{"bare address", `{"SubnetMin": 10.5.1.0}`, `n.json:1:15: expected the value of "SubnetMin", found 10.5.1.0: neither a number nor a string in double quotes`},
	{"leading zero", `{"SubnetLen": 024}`, `n.json:1:15: expected the value of "SubnetLen", found 024: neither a number nor a string in double quotes`},
	{"True", `{"EnableIPv6": True}`, `n.json:1:16: expected the value of "EnableIPv6", found True: write true`},
	{"unterminated string", "{\n  \"Network\": \"10.5.0.0/16,\n  \"SubnetLen\": 24\n}", `n.json:2:14: unterminated string: no closing '"' on line 2`},
	{"unterminated string at the end", `{"Network`, `n.json:1:2: unterminated string: no closing '"' on line 1`},
	{"unterminated string, CRLF", "{\"Network\r\n", `n.json:1:2: unterminated string: no closing '"' on line 1`},
	{"backslash at the end of a line", "{\"Network\\\n", `n.json:1:2: unterminated string: no closing '"' on line 1`},
	{"tab in a string", "{\"Net\twork\": 1}", `n.json:1:6: control character U+0009 in a string`},
	{"bad escape", `{"Net\work": 1}`, `n.json:1:6: invalid escape \w in a string`},
	{"bad escape, two bytes", `{"Net\éwork": 1}`, `n.json:1:6: invalid escape \é in a string`},
	{"bad unicode escape", `{"\u12x4": 1}`, `n.json:1:3: invalid escape \u12x in a string`},
	{"no end", "{\"Backend\":\n{\"Type\": \"udp\"\n", `n.json:3:1: the file ends before the '}' for the '{' at line 2, column 1`},
	{"no end after a comma", "{\"a\": 1,", `n.json:1:9: the file ends before the '}' for the '{' at line 1, column 1`},
	{"no end of an array", "{\"a\": [", `n.json:1:8: the file ends before the ']' for the '[' at line 1, column 7`},
	{"no value before the end", "{\"a\":", `n.json:1:6: expected the value of "a", found the end of the file`},
	{"open comment", "{ /* \"Network\": 1 }", `n.json:1:3: unterminated comment: no closing */`},
	{"half a comment", "{ / }", `n.json:1:3: expected a key in double quotes, found '/'`},
	{"hash comment", "# mine\n{}", `n.json:1:1: expected a JSON object, found '#'`},
	{"two documents", "{}\n{}", `n.json:2:1: expected nothing after the end of an object, found '{'`},
	{"deep nesting", strings.Repeat(`[`, 70), `n.json:1:65: nested deeper than 64 levels`},
	{"columns count characters", "{\"é世\": 1;}", `n.json:1:9: expected ',' or '}' after the value of "é世" on line 1, found ';'`},
	{"long key", `{"` + strings.Repeat("k", 99) + `" 1}`, `n.json:1:104: expected ':' after the key "` + strings.Repeat("k", 61) + `...", found 1`},

	// Keys.
	{"set twice", onV4 + "  \"SubnetLen\": 24,\n\"subnetlen\": 25}", `n.json:3:1: subnetlen: set twice: "SubnetLen" is on line 2, column 3 already`},
	{"unknown key set twice", "{\"x\": 1,\n\"x\": 1}", `n.json:2:1: x: set twice: "x" is on line 1, column 2 already`},
	{"option set twice", onV4 + "\"Backend\": {\"Type\": \"udp\", \"Port\": 1, \"PORT\": 1}}", `n.json:2:39: Backend.PORT: set twice: "Port" is on line 2, column 28 already`},

	// Types.
	{"string for a boolean", onV4 + `"EnableNFTables": "true"}`, `n.json:2:19: EnableNFTables: "true": a string, not a boolean (allowed: true or false)`},
	{"string for a number", onV4 + `"SubnetLen": "24"}`, `n.json:2:14: SubnetLen: "24": a string, not a number (allowed: 18 to 30 for Network 10.244.0.0/16)`},
	{"fraction", onV4 + `"SubnetLen": 24.0}`, `n.json:2:14: SubnetLen: 24.0: not a whole number (allowed: 18 to 30 for Network 10.244.0.0/16)`},
	{"minus zero", onV4 + `"SubnetLen": -0}`, `n.json:2:14: SubnetLen: -0: not a whole number (allowed: 18 to 30 for Network 10.244.0.0/16)`},
	{"object for a network", `{"Network": {"a": 1}}`, `n.json:1:13: Network: {...}: an object, not a string (allowed: ` + net4 + `)`},
	{"array for an address", onV4 + `"SubnetMin": ["10.244.1.0"]}`, `n.json:2:14: SubnetMin: [...]: an array, not a string (allowed: the first address of a node subnet)`},
	{"string for Backend", onV4 + `"Backend": "vxlan"}`, `n.json:2:12: Backend: "vxlan": a string, not an object (allowed: an object such as {"Type": "vxlan"})`},
	{"null for Backend", onV4 + `"Backend": null}`, `n.json:2:12: Backend: null: null, not an object (allowed: an object such as {"Type": "vxlan"})`},

	// Network.
	{"no network", "\n { }", `n.json:2:2: Network: missing (allowed: ` + net4 + `)`},
	{"no network though asked for", `{"EnableIPv4": true}`, `n.json:1:16: Network: missing, but EnableIPv4 is true (allowed: ` + net4 + `)`},
	{"no IPv6 network", onV4 + `"EnableIPv6": true}`, `n.json:2:15: IPv6Network: missing, but EnableIPv6 is true (allowed: ` + net6 + `)`},
	{"no family", `{"EnableIPv4": false}`, `n.json:1:16: EnableIPv4: false: no address family is left: EnableIPv6 is not true`},
	{"empty network", `{"Network": ""}`, `n.json:1:13: Network: "": not an IPv4 address (allowed: ` + net4 + `)`},
	{"no length", `{"Network": "10.244.0.0"}`, `n.json:1:13: Network: 10.244.0.0: no /length after the address (allowed: ` + net4 + `)`},
	{"length over 32", `{"Network": "10.244.0.0/33"}`, `n.json:1:13: Network: 10.244.0.0/33: no such prefix length (allowed: ` + net4 + `)`},
	{"length not a number", `{"Network": "10.244.0.0/a"}`, `n.json:1:13: Network: 10.244.0.0/a: not an IPv4 prefix (allowed: ` + net4 + `)`},
	{"octet over 255", `{"Network": "10.256.0.0/16"}`, `n.json:1:13: Network: 10.256.0.0/16: not an IPv4 address (allowed: ` + net4 + `)`},
	{"whole address space", `{"Network": "0.0.0.0/0"}`, `n.json:1:13: Network: 0.0.0.0/0: the whole address space (allowed: ` + net4 + `)`},
	{"network too small", `{"Network": "10.244.0.0/29"}`, `n.json:1:13: Network: 10.244.0.0/29: too small for four node subnets (allowed: ` + net4 + `)`},
	{"IPv6 in Network", `{"Network": "fc00::/48"}`, `n.json:1:13: Network: fc00::/48: of the other address family (allowed: ` + net4 + `)`},
	{"IPv4 in IPv6Network", onV4 + `"IPv6Network": "10.5.0.0/16"}`, `n.json:2:16: IPv6Network: 10.5.0.0/16: of the other address family (allowed: ` + net6 + `)`},
	{"mapped IPv4", onV4 + `"IPv6Network": "::ffff:10.5.0.0/112"}`, `n.json:2:16: IPv6Network: ::ffff:10.5.0.0/112: not an IPv6 address (allowed: ` + net6 + `)`},
	{"zone", onV4 + `"IPv6Network": "fe80::%eth0/64"}`, `n.json:2:16: IPv6Network: fe80::%eth0/64: not an IPv6 address (allowed: ` + net6 + `)`},
	{"IPv6 network too small", `{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fc00::/125"}`, `n.json:1:58: IPv6Network: fc00::/125: too small for four node subnets (allowed: ` + net6 + `)`},
	{"escape in a value", `{"Network": "10\n"}`, `n.json:1:13: Network: "10\n": not an IPv4 address (allowed: ` + net4 + `)`},

	// SubnetLen.
	{"too long", onV4 + `"SubnetLen": 31}`, `n.json:2:14: SubnetLen: 31: longer than a usable node subnet (allowed: 18 to 30 for Network 10.244.0.0/16)`},
	{"too short", onV4 + `"SubnetLen": 17}`, `n.json:2:14: SubnetLen: 17: too short for four node subnets (allowed: 18 to 30 for Network 10.244.0.0/16)`},
	{"negative", onV4 + `"SubnetLen": -24}`, `n.json:2:14: SubnetLen: -24: negative (allowed: 18 to 30 for Network 10.244.0.0/16)`},
	{"enormous", onV4 + `"SubnetLen": 99999999999999999999}`, `n.json:2:14: SubnetLen: 99999999999999999999: longer than a usable node subnet (allowed: 18 to 30 for Network 10.244.0.0/16)`},
	{"IPv6 too long", onV6 + `"IPv6SubnetLen": 127}`, `n.json:2:18: IPv6SubnetLen: 127: longer than a usable node subnet (allowed: 50 to 126 for IPv6Network fc00::/48)`},
	{"IPv6 too short", onV6 + `"IPv6SubnetLen": 49}`, `n.json:2:18: IPv6SubnetLen: 49: too short for four node subnets (allowed: 50 to 126 for IPv6Network fc00::/48)`},

	// SubnetMin and SubnetMax.
	{"min outside", onV4 + `"SubnetMin": "10.245.0.0"}`, `n.json:2:14: SubnetMin: 10.245.0.0: outside Network 10.244.0.0/16 (allowed: 10.244.0.0 to 10.244.255.0)`},
	{"max outside", onV4 + `"SubnetMax": "10.243.255.0"}`, `n.json:2:14: SubnetMax: 10.243.255.0: outside Network 10.244.0.0/16 (allowed: 10.244.0.0 to 10.244.255.0)`},
	{"min unaligned", onV4 + `"SubnetMin": "10.244.3.7"}`, `n.json:2:14: SubnetMin: 10.244.3.7: not the first address of a /24 subnet (allowed: 10.244.3.0)`},
	{"max unaligned", onV4 + `"SubnetMax": "10.244.3.7/24"}`, `n.json:2:14: SubnetMax: 10.244.3.7/24: not the first address of a /24 subnet (allowed: 10.244.3.0)`},
	{"other length", onV4 + `"SubnetMin": "10.244.3.0/25"}`, `n.json:2:14: SubnetMin: 10.244.3.0/25: /25 differs from SubnetLen 24 (allowed: 10.244.3.0 or 10.244.3.0/24)`},
	{"no address", onV4 + `"SubnetMin": "ten"}`, `n.json:2:14: SubnetMin: ten: not an IPv4 address (allowed: the first address of a node subnet)`},
	{"no length after /", onV4 + `"SubnetMin": "10.244.3.0/"}`, `n.json:2:14: SubnetMin: 10.244.3.0/: not an IPv4 prefix (allowed: the first address of a node subnet)`},
	{"IPv6 address", onV4 + `"SubnetMin": "fc00::"}`, `n.json:2:14: SubnetMin: fc00::: of the other address family (allowed: the first address of a node subnet)`},
	{"max below min", onV4 + `"SubnetMin": "10.244.9.0", "SubnetMax": "10.244.8.0"}`, `n.json:2:41: SubnetMax: 10.244.8.0: below SubnetMin 10.244.9.0 (allowed: 10.244.9.0 to 10.244.255.0)`},
	{"max below the default min", onV4 + `"SubnetMax": "10.244.0.0"}`, `n.json:2:14: SubnetMax: 10.244.0.0: below SubnetMin 10.244.1.0 (allowed: 10.244.1.0 to 10.244.255.0)`},
	{"IPv6 min outside", onV6 + `"IPv6SubnetMin": "fd00::"}`, `n.json:2:18: IPv6SubnetMin: fd00::: outside IPv6Network fc00::/48 (allowed: fc00:: to fc00:0:0:ffff::)`},
	{"IPv6 max unaligned", onV6 + `"IPv6SubnetMax": "fc00:0:0:9::1"}`, `n.json:2:18: IPv6SubnetMax: fc00:0:0:9::1: not the first address of a /64 subnet (allowed: fc00:0:0:9::)`},
	{"form counts where the family is off", onV4 + `"IPv6SubnetMin": "10.0.0.0"}`, `n.json:2:18: IPv6SubnetMin: 10.0.0.0: of the other address family (allowed: the first address of a node subnet)`},

	// Backend.
	{"no type", onV4 + `"Backend": {"VNI": 1}}`, `n.json:2:12: Backend.Type: missing (allowed: ` + typeList + `)`},
	{"unknown type", onV4 + `"Backend": {"Type": "vxlna"}}`, `n.json:2:21: Backend.Type: vxlna: no such backend (allowed: ` + typeList + `)`},
	{"empty type", onV4 + `"Backend": {"Type": ""}}`, `n.json:2:21: Backend.Type: "": no such backend (allowed: ` + typeList + `)`},
	{"type is a number", onV4 + `"Backend": {"Type": 1}}`, `n.json:2:21: Backend.Type: 1: a number, not a string (allowed: ` + typeList + `)`},
	{"VNI", onV4 + `"Backend": {"Type": "vxlan", "VNI": 16777216}}`, `n.json:2:37: Backend.VNI: 16777216: out of range (allowed: 0 to 16777215)`},
	{"port", onV4 + `"Backend": {"Type": "vxlan", "Port": 65536}}`, `n.json:2:38: Backend.Port: 65536: out of range (allowed: 0 to 65535)`},
	{"negative port", onV4 + `"Backend": {"Type": "udp", "Port": -1}}`, `n.json:2:36: Backend.Port: -1: out of range (allowed: 0 to 65535)`},
	{"small MTU", onV4 + `"Backend": {"Type": "vxlan", "MTU": 117}}`, `n.json:2:37: Backend.MTU: 117: out of range (allowed: 118 to 65535, or 0 for the underlay's)`},
	{"large MTU", onV4 + `"Backend": {"Type": "vxlan", "MTU": 65536}}`, `n.json:2:37: Backend.MTU: 65536: out of range (allowed: 118 to 65535, or 0 for the underlay's)`},
	{"small MTU with IPv6", onV6 + `"Backend": {"Type": "vxlan", "MTU": 1349}}`, `n.json:2:37: Backend.MTU: 1349: out of range (allowed: 1350 to 65535, or 0 for the underlay's)`},
	{"small MTU of wireguard", onV4 + `"Backend": {"Type": "wireguard", "MTU": 147}}`, `n.json:2:41: Backend.MTU: 147: out of range (allowed: 148 to 65535, or 0 for the underlay's)`},
	{"MTU is a string", onV4 + `"Backend": {"Type": "vxlan", "MTU": "1400"}}`, `n.json:2:37: Backend.MTU: "1400": a string, not a number (allowed: 118 to 65535, or 0 for the underlay's)`},
	{"DirectRouting is a number", onV4 + `"Backend": {"Type": "ipip", "Directrouting": 1}}`, `n.json:2:46: Backend.DirectRouting: 1: a number, not a boolean (allowed: true or false)`},
	{"keepalive", onV4 + `"Backend": {"Type": "wireguard", "PersistentKeepaliveInterval": 65536}}`, `n.json:2:65: Backend.PersistentKeepaliveInterval: 65536: out of range (allowed: 0 to 65535)`},
	{"mode", onV4 + `"Backend": {"Type": "wireguard", "Mode": "both"}}`, `n.json:2:42: Backend.Mode: both: no such mode (allowed: separate, auto, ipv4, ipv6)`},
	{"mode is a number", onV4 + `"Backend": {"Type": "wireguard", "Mode": 4}}`, `n.json:2:42: Backend.Mode: 4: a number, not a string`},
	{"secret of a wrong length", onV4 + `"Backend": {"Type": "wireguard", "PSK": "c2VjcmV0"}}`, `n.json:2:41: Backend.PSK: (hidden): not 32 bytes in base64 (allowed: the output of wg genpsk)`},
	{"secret of a wrong type", onV4 + `"Backend": {"Type": "ipsec", "PSK": 12345}}`, `n.json:2:37: Backend.PSK: (hidden): a number, not a string`},
}

func TestErrors(t *testing.T) {
	for _, tt := range refused {
		t.Run(tt.name, func(t *testing.T) {
			c, _, err := Parse("n.json", []byte(tt.in))
			if c != nil || err == nil {
				t.Fatalf("accepted: %+v", c)
			}
			if err.Error() != tt.want {
				t.Errorf("\n got %s\nwant %s", err, tt.want)
			}
		})
	}
}

func TestErrorFields(t *testing.T) {
	_, _, err := Parse("n.json", []byte("{\n  \"Network\": \"10.244.0.0/16\",\n  \"SubnetLen\": 31\n}"))
	e, ok := errors.AsType[*Error](err)
	want := Error{"n.json", 3, 16, "SubnetLen", "31", "longer than a usable node subnet", "18 to 30 for Network 10.244.0.0/16"}
	if !ok || *e != want {
		t.Errorf("got %#v", err)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := Load(filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent file: %v", err)
	}
	if _, _, err := Load(dir); err == nil {
		t.Error("a directory was accepted")
	}
	path := filepath.Join(dir, "n.json")
	if err := os.WriteFile(path, append([]byte(`{"Network": "10.5.0.0/16"}`), make([]byte, 2<<20)...), 0o600); err != nil {
		t.Fatal(err)
	}
	want := path + ": larger than 1 MiB: not a net-conf.json"
	if _, _, err := Load(path); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
