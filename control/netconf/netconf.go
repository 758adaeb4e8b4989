// Package netconf owns flannel's net-conf.json: reading it, its defaults and its validation.
//
// It never looks at the machine (links, MTUs, other nodes), never decides whether a backend can run
// here, and never writes a file. What it accepts, it accepts with flannel's meaning; where flannel
// goes on with a configuration that cannot work, it fails and says where.
//
// Source: flannel v0.28 pkg/subnet/config.go and pkg/backend; JSON is RFC 8259 plus // and /* */
// comments.
//
// Stricter than flannel: duplicate keys, SubnetMax below SubnetMin, no address family enabled, ports,
// VNI and MTU out of range, IPv4-mapped IPv6 addresses. Looser: comments, a byte-order mark, null for
// an unset key, SubnetMin and SubnetMax with the length of SubnetLen.
package netconf

import (
	"bytes"
	"io"
	"net/netip"
	"os"
	"slices"
	"unicode/utf8"
)

// maxSize bounds the file in bytes: an etcd value, the other home of this configuration, is smaller.
const maxSize = 1 << 20

// Config is a validated net-conf.json with every default filled in. It is not changed after Parse
// and may be shared. The zero value is not valid; use Default. Marshalled as JSON it is a
// net-conf.json again (pre-shared keys included) that Parse reads as the same Config.
type Config struct {
	EnableIPv4     bool
	EnableIPv6     bool
	EnableNFTables bool

	// Mode says what becomes of traffic between pods and the world outside of Network: isolated, flat or island; empty if unset.
	// It is tulle's own key: flannel ignores it.
	Mode string `json:",omitempty"`

	// Valid iff EnableIPv4, zero otherwise. Network is masked. Node subnets have length SubnetLen
	// and start at SubnetMin, SubnetMax or between; both are on a SubnetLen boundary.
	Network   netip.Prefix `json:",omitzero"`
	SubnetLen int          `json:",omitempty"`
	SubnetMin netip.Addr   `json:",omitzero"`
	SubnetMax netip.Addr   `json:",omitzero"`

	// Valid iff EnableIPv6, zero otherwise; as above.
	IPv6Network   netip.Prefix `json:",omitzero"`
	IPv6SubnetLen int          `json:",omitempty"`
	IPv6SubnetMin netip.Addr   `json:",omitzero"`
	IPv6SubnetMax netip.Addr   `json:",omitzero"`

	Backend Backend
}

// Default is the configuration of a node without a file: Network 10.244.0.0/16 over vxlan. (In a
// file without Backend flannel means udp, whatever its documentation says, and so does Parse.)
func Default() *Config {
	p := ipv4.withDefaults(netip.MustParsePrefix("10.244.0.0/16"))
	return &Config{
		EnableIPv4: true,
		Network:    p.network, SubnetLen: p.length, SubnetMin: p.min, SubnetMax: p.max,
		Backend: Backend{Type: TypeVXLAN, VXLAN: VXLAN{VNI: defaultVNI, Port: vxlanPort}},
	}
}

// Load parses the file at path. An error to open or read it is the one of package os, so that
// errors.Is(err, fs.ErrNotExist) holds for an absent file; any other error is an *Error.
func Load(path string) (*Config, []Warning, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, nil, err
	}
	return Parse(path, data)
}

// Parse reads and validates data; file is the name that errors and warnings carry. An error is
// always an *Error. Warnings are sorted by position and come with an error too: a misspelt key is
// often the cause of a missing one.
func Parse(file string, data []byte) (*Config, []Warning, error) {
	d := &decoder{file: file, src: bytes.TrimPrefix(data, []byte("\ufeff"))}
	c := d.config()
	slices.SortStableFunc(d.warnings, Warning.compare)
	if d.err != nil {
		return nil, d.warnings, d.err
	}
	return c, d.warnings, nil
}

func (d *decoder) config() *Config {
	top := d.document()
	if top == nil {
		return nil
	}
	c := &Config{
		EnableIPv4:     top.boolean("EnableIPv4", true),
		EnableIPv6:     top.boolean("EnableIPv6", false),
		EnableNFTables: top.boolean("EnableNFTables", false),
	}
	if v, _ := top.find("EnableIPv4"); !c.EnableIPv4 && !c.EnableIPv6 {
		top.fail(v, "EnableIPv4", "no address family is left: EnableIPv6 is not true", "")
	}
	c.Mode = top.mode()
	p := top.pool(ipv4, c.EnableIPv4)
	c.Network, c.SubnetLen, c.SubnetMin, c.SubnetMax = p.network, p.length, p.min, p.max
	p = top.pool(ipv6, c.EnableIPv6)
	c.IPv6Network, c.IPv6SubnetLen, c.IPv6SubnetMin, c.IPv6SubnetMax = p.network, p.length, p.min, p.max
	c.Backend = top.backend(c.EnableIPv6)
	top.warnUnknown("a key of net-conf.json")
	return c
}

// document checks the bytes and reads them as one object.
func (d *decoder) document() *object {
	if len(d.src) > maxSize {
		d.report(&Error{File: d.file, Reason: "larger than 1 MiB: not a net-conf.json"})
		return nil
	}
	if bad := firstInvalidUTF8(d.src); bad >= 0 {
		d.failAt(bad, "", "", "not UTF-8", "")
		return nil
	}
	v, err := read(d.src)
	switch {
	case err == errEmpty:
		d.report(&Error{File: d.file, Reason: `empty: expected at least {"Network": "10.244.0.0/16"}`})
		return nil
	case err != nil:
		d.failAt(err.at, "", "", err.reason, "")
		return nil
	case v.kind != kindObject:
		d.failAt(v.start, "", "", "expected an object in { }, found "+v.kind.String(), "")
		return nil
	}
	return d.object("", v)
}

// firstInvalidUTF8 returns the offset of the first byte that is not UTF-8, or -1.
func firstInvalidUTF8(b []byte) int {
	for i := 0; i < len(b); {
		r, n := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return -1
}

const modes = "isolated, flat or island"

func (o *object) mode() string {
	v, ok := o.typed("Mode", kindString, modes)
	if !ok {
		return ""
	}
	switch v.text {
	case "isolated", "flat", "island":
	default:
		o.fail(v, "Mode", "no such mode", modes)
	}
	return v.text
}
