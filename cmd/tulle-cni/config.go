package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	cni "github.com/containernetworking/cni/pkg/types/100"
	cniversion "github.com/containernetworking/cni/pkg/version"

	"github.com/tulle-net/tulle/control/cniapi"
)

const (
	defaultRunDir       = "/run/tulle"
	attachVeth          = cniapi.KindVeth
	attachTAP           = cniapi.KindTAP
	attachBridge        = "bridge"
	validAttachmentsKey = "cni.dev/valid-attachments"
)

// config is the plugin's part of a CNI configuration, as the runtime hands it over.
type config struct {
	CNIVersion       string               `json:"cniVersion"`
	Name             string               `json:"name"`
	RunDir           string               `json:"runDir"`     // of the daemon; defaultRunDir if empty
	Attachment       string               `json:"attachment"` // attachVeth if empty
	IPAM             types.IPAM           `json:"ipam"`       // the daemon's own if it has no type
	DNS              types.DNS            `json:"dns"`
	PrevResult       map[string]any       `json:"prevResult"`
	ValidAttachments []types.GCAttachment `json:"cni.dev/valid-attachments"`
	RuntimeConfig    struct {
		IPs []string `json:"ips"` // addresses, with or without a length
		MAC string   `json:"mac"`

		PortMappings []cniapi.Port    `json:"portMappings"`
		Bandwidth    cniapi.Bandwidth `json:"bandwidth"`
	} `json:"runtimeConfig"`
}

func configError(format string, a ...any) error {
	return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf(format, a...), "")
}

func parseConfig(data []byte) (*config, error) {
	c := &config{RunDir: defaultRunDir}
	if err := json.Unmarshal(data, c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("configuration: %s", err), "")
	}
	if !filepath.IsAbs(c.RunDir) || filepath.Clean(c.RunDir) != c.RunDir {
		return nil, configError("runDir %q is not an absolute path without detours", c.RunDir)
	}
	if c.Attachment = cmp.Or(c.Attachment, attachVeth); !slices.Contains([]string{attachVeth, attachTAP, attachBridge}, c.Attachment) {
		return nil, configError("attachment %q: %s, %s and %s are known", c.Attachment, attachVeth, attachTAP, attachBridge)
	}
	return c, nil
}

// addrs reads the static addresses that the runtime asks for.
func (c *config) addrs() (addrs []netip.Addr, err error) {
	for _, s := range c.RuntimeConfig.IPs {
		text, _, _ := strings.Cut(s, "/")
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			return nil, configError("runtimeConfig.ips: %q is no IP address", s)
		}
		addrs = append(addrs, a.Unmap())
	}
	return addrs, nil
}

// previous is the result of the plugins before this one, empty without any.
func (c *config) previous() (*cni.Result, error) {
	if c.PrevResult == nil {
		return &cni.Result{CNIVersion: cni.ImplementedSpecVersion}, nil
	}
	data, err := json.Marshal(c.PrevResult)
	if err != nil {
		return nil, err
	}
	raw, err := cniversion.NewResult(c.CNIVersion, data)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("prevResult: %s", err), "")
	}
	result, err := cni.NewResultFromResult(raw)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("prevResult: %s", err), "")
	}
	return result, nil
}

// addrsIn returns all addresses of a result.
func addrsIn(result *cni.Result) (addrs []netip.Addr) {
	for _, ip := range result.IPs {
		a, _ := netip.AddrFromSlice(ip.Address.IP)
		addrs = append(addrs, a.Unmap())
	}
	return addrs
}

// addrsOn returns the addresses that a result has for an interface of the pod.
func addrsOn(result *cni.Result, ifname, sandbox string) (addrs []netip.Addr, err error) {
	for _, ip := range result.IPs {
		if ip.Interface == nil {
			continue
		}
		i := *ip.Interface
		if i < 0 || i >= len(result.Interfaces) {
			return nil, configError("prevResult: address %s is on interface %d of %d", &ip.Address, i, len(result.Interfaces))
		}
		if on := result.Interfaces[i]; on.Name != ifname || on.Sandbox != sandbox {
			continue
		}
		a, _ := netip.AddrFromSlice(ip.Address.IP)
		addrs = append(addrs, a.Unmap())
	}
	if len(addrs) == 0 {
		return nil, configError("prevResult has no address on %s of %s", ifname, sandbox)
	}
	return addrs, nil
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// everything is the destination of the default route of an address's family.
func everything(a netip.Addr) net.IPNet {
	return net.IPNet{IP: make(net.IP, a.BitLen()/8), Mask: net.CIDRMask(0, a.BitLen())}
}
