package control

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tulle-net/tulle/control/netconf"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// TestParsePeers reads one entry of each form.
func TestParsePeers(t *testing.T) {
	got, err := ParsePeers([]byte(`[
		{"name": "four", "publicIP": "192.0.2.4", "subnet": "10.244.4.0/24", "backendType": "vxlan", "backendData": {"VNI": 1, "VtepMAC": "02:00:00:00:00:04"},
		 "publicIPv6": null, "backendV6Data": null},
		{"name": "six", "publicIPv6": "2001:db8::6", "ipv6Subnet": "fd00:244:0:6::/64", "backendType": "vxlan", "backendV6Data": {"VNI": 1, "VtepMAC": "02:00:00:00:00:06"}},
		{"publicIP": "192.0.2.2", "subnet": "10.244.2.0/24", "publicIPv6": "2001:db8::2", "ipv6Subnet": "fd00:244:0:2::/64", "backendType": "vxlan",
		 "backendData": {"VNI": 1, "VtepMAC": "02:00:00:00:00:02"}, "backendV6Data": {"VNI": 1, "VtepMAC": "02:00:00:00:00:22"}},
		{"publicIP": "192.0.2.9", "subnet": "10.244.9.0/24"}
	]`))
	if err != nil {
		t.Fatal(err)
	}
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	want := []Node{
		{Name: "four", PublicIP: addr("192.0.2.4"), Subnet: prefix("10.244.4.0/24"), BackendType: netconf.TypeVXLAN, VNI: 1, VTEP: tables.MAC{2, 5: 4}},
		{Name: "six", PublicIPv6: addr("2001:db8::6"), IPv6Subnet: prefix("fd00:244:0:6::/64"), BackendType: netconf.TypeVXLAN, VNI: 1, VTEPv6: tables.MAC{2, 5: 6}},
		{
			Name: "192.0.2.2", PublicIP: addr("192.0.2.2"), Subnet: prefix("10.244.2.0/24"), BackendType: netconf.TypeVXLAN, VNI: 1, VTEP: tables.MAC{2, 5: 2},
			PublicIPv6: addr("2001:db8::2"), IPv6Subnet: prefix("fd00:244:0:2::/64"), VTEPv6: tables.MAC{2, 5: 0x22},
		},
		{Name: "192.0.2.9", PublicIP: addr("192.0.2.9"), Subnet: prefix("10.244.9.0/24")},
	}
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); d != "" {
		t.Error(d)
	}
}

// TestWrongPeers demands that an error names entry, field, value and what is allowed.
func TestWrongPeers(t *testing.T) {
	const six = `"ipv6Subnet": "fd00:244:0:2::/64", "publicIPv6": "2001:db8::2"`
	const vxlan6 = `"backendType": "vxlan", "backendV6Data": {"VNI": 1, "VtepMAC": "02:00:00:00:00:02"}`
	for entry, want := range map[string]string{
		`{"name": "x"}`: `peer 1 ("x"): publicIP "": an IPv4 address is needed`,
		`{"publicIP": "2001:db8::2", "subnet": "10.244.2.0/24"}`:                            `publicIP "2001:db8::2": an IPv4 address is needed`,
		`{"publicIP": "192.0.2.2", "subnet": "fd00::/64"}`:                                  `subnet "fd00::/64": an IPv4 prefix of /30 or shorter is needed`,
		`{"publicIP": "192.0.2.2", ` + six + `, ` + vxlan6 + `}`:                            `subnet "": an IPv4 prefix`,
		`{"publicIPv6": "2001:db8::2", ` + vxlan6 + `}`:                                     `ipv6Subnet "": an IPv6 prefix of /126 or shorter is needed`,
		`{"ipv6Subnet": "fd00:244::/64", ` + vxlan6 + `}`:                                   `publicIPv6 "": a global IPv6 address is needed`,
		`{"ipv6Subnet": "fd00:244::/64", "publicIPv6": "fe80::1", ` + vxlan6 + `}`:          `publicIPv6 "fe80::1": a global`,
		`{"ipv6Subnet": "fd00:244::/64", "publicIPv6": "2001:db8::1%eth0", ` + vxlan6 + `}`: `publicIPv6 "2001:db8::1%eth0": a global`,
		`{"ipv6Subnet": "fd00:244::/64", "publicIPv6": "192.0.2.2", ` + vxlan6 + `}`:        `publicIPv6 "192.0.2.2": a global`,
		`{"ipv6Subnet": "fd00:244::/64", "publicIPv6": "::ffff:192.0.2.2", ` + vxlan6 + `}`: `publicIPv6 "::ffff:192.0.2.2": a global`,
		`{"ipv6Subnet": "fd00:244::7/64", "publicIPv6": "2001:db8::2", ` + vxlan6 + `}`:     `ipv6Subnet fd00:244::7/64 has host bits: write fd00:244::/64`,
		`{"ipv6Subnet": "fd00:244::/127", "publicIPv6": "2001:db8::2", ` + vxlan6 + `}`:     `ipv6Subnet "fd00:244::/127": an IPv6 prefix of /126`,
		`{"ipv6Subnet": "10.244.2.0/24", "publicIPv6": "2001:db8::2", ` + vxlan6 + `}`:      `ipv6Subnet "10.244.2.0/24": an IPv6 prefix`,
		`{` + six + `}`:                         `flannel's udp backend carries IPv4 only`,
		`{` + six + `, "backendType": "udp"}`:   `flannel's udp backend carries IPv4 only`,
		`{` + six + `, "backendType": "vxlan"}`: `backendV6Data.VtepMAC: "" is no 48-bit MAC address`,
		`{` + six + `, "backendType": "vxlan", "backendV6Data": {"VtepMAC": "01:00:00:00:00:02"}}`:                                                     `backendV6Data.VtepMAC: 01:00:00:00:00:02 is a multicast address`,
		`{"publicIP": "192.0.2.2", "subnet": "10.244.2.0/24", ` + six + `, ` + vxlan6 + `}`:                                                            `backendData.VtepMAC: "" is no`,
		`{"publicIP": "192.0.2.2", "subnet": "10.244.2.0/24", ` + six + `, ` + vxlan6 + `, "backendData": {"VNI": 2, "VtepMAC": "02:00:00:00:00:02"}}`: `backendV6Data.VNI 1: backendData has 2: a node has one VNI`,
		`{"ipv6Subnets": "fd00::/64"}`: `unknown field "ipv6Subnets"`,
	} {
		if nodes, err := ParsePeers([]byte("[" + entry + "]")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s:\n%v %v, want %q", entry, nodes, err, want)
		}
	}
}
