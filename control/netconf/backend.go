package netconf

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Backend types, in flannel's spelling.
const (
	TypeVXLAN      = "vxlan"
	TypeUDP        = "udp"
	TypeHostGW     = "host-gw"
	TypeWireGuard  = "wireguard"
	TypeIPIP       = "ipip"
	TypeAlloc      = "alloc"
	TypeIPSec      = "ipsec"
	TypeExtension  = "extension"
	TypeTencentVPC = "tencent-vpc"
)

// flannel's defaults. vxlanPort is that of the kernel's VXLAN devices, not RFC 7348's 4789.
const (
	defaultVNI    = 1
	vxlanPort     = 8472
	udpPort       = 8285
	wireGuardPort = 51820
)

// Backend is how packets get to other nodes. The options of ipsec, extension and tencent-vpc are
// checked for their type and not kept.
type Backend struct {
	Type string // one of the Type constants

	VXLAN     VXLAN     // valid iff Type is TypeVXLAN
	UDP       UDP       // valid iff Type is TypeUDP
	WireGuard WireGuard // valid iff Type is TypeWireGuard
	IPIP      IPIP      // valid iff Type is TypeIPIP
}

// VXLAN holds the options of the vxlan backend.
type VXLAN struct {
	VNI           uint32 // 0 to 2^24-1; the kernel takes 0
	Port          uint16 // never 0
	MTU           int    // of the underlay, before the VXLAN overhead; 0: take the link's
	GBP           bool
	Learning      bool
	DirectRouting bool
	MacPrefix     string `json:",omitempty"` // Windows only; not checked
}

// UDP holds the options of the udp backend.
type UDP struct {
	Port uint16 // never 0
}

// WireGuard holds the options of the wireguard backend.
type WireGuard struct {
	ListenPort                  uint16 // never 0
	ListenPortV6                uint16 // never 0
	MTU                         int    // of the underlay, before the WireGuard overhead; 0: take the link's
	PSK                         string `json:",omitempty"` // 32 bytes in base64, or empty
	PersistentKeepaliveInterval int    // seconds, 0 is off
	Mode                        string // separate, auto, ipv4 or ipv6
}

// IPIP holds the options of the ipip backend.
type IPIP struct {
	DirectRouting bool
}

// MarshalJSON gives the backend as net-conf.json has it: the options beside the type.
func (b Backend) MarshalJSON() ([]byte, error) {
	switch b.Type {
	case TypeVXLAN:
		return json.Marshal(struct {
			Type string
			VXLAN
		}{b.Type, b.VXLAN})
	case TypeUDP:
		return json.Marshal(struct {
			Type string
			UDP
		}{b.Type, b.UDP})
	case TypeWireGuard:
		return json.Marshal(struct {
			Type string
			WireGuard
		}{b.Type, b.WireGuard})
	case TypeIPIP:
		return json.Marshal(struct {
			Type string
			IPIP
		}{b.Type, b.IPIP})
	}
	return json.Marshal(struct{ Type string }{b.Type})
}

// knownBackend is a type that flannel has; options looks every option of it up.
type knownBackend struct {
	name    string
	options func(o *object, b *Backend, withIPv6 bool)
}

// backends are in the order in which messages name them.
var backends = []knownBackend{
	{TypeVXLAN, (*object).vxlan},
	{TypeUDP, func(o *object, b *Backend, _ bool) { b.UDP.Port = o.port("Port", udpPort) }},
	{TypeHostGW, noOptions},
	{TypeWireGuard, (*object).wireGuard},
	{TypeIPIP, func(o *object, b *Backend, _ bool) { b.IPIP.DirectRouting = o.boolean("DirectRouting", false) }},
	{TypeAlloc, noOptions},
	{TypeIPSec, func(o *object, _ *Backend, _ bool) {
		o.boolean("UDPEncap", false)
		o.str("ESPProposal", "")
		o.secret("PSK")
	}},
	{TypeExtension, func(o *object, _ *Backend, _ bool) {
		for _, name := range []string{"PreStartupCommand", "PostStartupCommand", "SubnetAddCommand", "SubnetRemoveCommand"} {
			o.str(name, "")
		}
	}},
	{TypeTencentVPC, func(o *object, _ *Backend, _ bool) {
		o.secret("AccessKeyID")
		o.secret("AccessKeySecret")
	}},
}

func noOptions(*object, *Backend, bool) {}

func typeNames() string {
	var names []string
	for _, b := range backends {
		names = append(names, b.name)
	}
	return strings.Join(names, ", ")
}

// backend reads the Backend object. Without one flannel takes udp; one without Type is an error, and so
// is null, which flannel takes for one.
func (o *object) backend(withIPv6 bool) Backend {
	v, ok := o.find("Backend")
	if !ok && v.end == 0 {
		return Backend{Type: TypeUDP, UDP: UDP{Port: udpPort}}
	}
	if v.kind != kindObject {
		o.wrongKind(v, "Backend", kindObject, `an object such as {"Type": "vxlan"}`)
		return Backend{}
	}
	b := o.decoder.object("Backend.", v)
	t, ok := b.typed("Type", kindString, typeNames())
	if !ok {
		b.failAt(v.start, "Backend.Type", "", "missing", typeNames())
		return Backend{}
	}
	backend := Backend{Type: strings.ToLower(t.text)}
	i := slices.IndexFunc(backends, func(known knownBackend) bool { return known.name == backend.Type })
	if i < 0 {
		b.fail(t, "Type", "no such backend", typeNames())
		return Backend{}
	}
	backends[i].options(b, &backend, withIPv6)
	b.warnUnknown("an option of the " + backend.Type + " backend")
	return backend
}

func (o *object) vxlan(b *Backend, withIPv6 bool) {
	overhead := int64(50) // with an IPv4 outer header
	if withIPv6 {
		overhead = 70 // with an IPv6 one, which flannel does not reckon with
	}
	b.VXLAN = VXLAN{
		VNI:           uint32(o.between("VNI", defaultVNI, 0, 1<<24-1)),
		Port:          o.port("Port", vxlanPort),
		MTU:           o.mtu(overhead, withIPv6),
		GBP:           o.boolean("GBP", false),
		Learning:      o.boolean("Learning", false),
		DirectRouting: o.boolean("DirectRouting", false),
		MacPrefix:     o.str("MacPrefix", ""),
	}
	o.str("Name", "") // of the device, Windows only
}

func (o *object) wireGuard(b *Backend, withIPv6 bool) {
	const overhead = 80
	b.WireGuard = WireGuard{
		ListenPort:                  o.port("ListenPort", wireGuardPort),
		ListenPortV6:                o.port("ListenPortV6", wireGuardPort+1),
		MTU:                         o.mtu(overhead, withIPv6),
		PersistentKeepaliveInterval: int(o.between("PersistentKeepaliveInterval", 0, 0, 1<<16-1)),
		Mode:                        o.str("Mode", "separate"),
	}
	if mode, _ := o.find("Mode"); !slices.Contains([]string{"separate", "auto", "ipv4", "ipv6"}, b.WireGuard.Mode) {
		o.fail(mode, "Mode", "no such mode", "separate, auto, ipv4, ipv6")
	}
	psk, ok := o.secret("PSK")
	if !ok || psk.text == "" {
		return
	}
	if key, err := base64.StdEncoding.DecodeString(psk.text); err != nil || len(key) != 32 {
		o.failAt(psk.start, o.prefix+"PSK", "(hidden)", "not 32 bytes in base64", "the output of wg genpsk")
	}
	b.WireGuard.PSK = psk.text
}

// port returns a UDP port; 0 asks for the default, as vxlan's does in flannel.
func (o *object) port(name string, unset uint16) uint16 {
	if n := o.between(name, 0, 0, 1<<16-1); n != 0 {
		return uint16(n)
	}
	return unset
}

// mtu returns an underlay MTU that leaves the smallest one of IPv4 (68, RFC 791; also the least the
// kernel sets on a VXLAN device) or of IPv6 (1280, RFC 8200) to pods, or 0.
func (o *object) mtu(overhead int64, withIPv6 bool) int {
	least := 68 + overhead
	if withIPv6 {
		least = 1280 + overhead
	}
	allowed := fmt.Sprintf("%d to 65535, or 0 for the underlay's", least)
	n, v, ok := o.integer("MTU", allowed)
	switch {
	case !ok || n == 0:
		return 0
	case n < least || n > 65535:
		o.fail(v, "MTU", "out of range", allowed)
	}
	return int(n)
}
