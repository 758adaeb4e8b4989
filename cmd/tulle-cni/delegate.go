package main

import (
	"cmp"
	"context"
	"encoding/json"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	cni "github.com/containernetworking/cni/pkg/types/100"

	"github.com/tulle-net/tulle/control/cniapi"
)

const (
	hostLocal    = "host-local"
	bridgePlugin = "bridge"
)

// A document is a configuration with all its keys, for other plugins to read.
type document map[string]any

func parseDocument(stdin []byte) (d document, err error) {
	err = json.Unmarshal(stdin, &d)
	return d, err
}

// fill says from which of the node's addresses host-local takes, unless the configuration does.
func (d document) fill(pool cniapi.Pool) {
	ipam, _ := d["ipam"].(map[string]any)
	if ipam["type"] != hostLocal || ipam["ranges"] != nil || ipam["subnet"] != nil {
		return
	}
	var sets [][]map[string]any
	for _, r := range pool.Ranges {
		sets = append(sets, []map[string]any{{"subnet": r.Subnet, "rangeStart": r.First, "rangeEnd": r.Last, "gateway": r.Gateway}})
	}
	ipam["ranges"] = sets
}

// fillAny is for what needs ranges only to be there, so that it works while no daemon answers.
func (d document) fillAny() {
	ipam, _ := d["ipam"].(map[string]any)
	if ipam["type"] == hostLocal && ipam["ranges"] == nil && ipam["subnet"] == nil {
		ipam["ranges"] = [][]map[string]any{{{"subnet": "192.0.2.0/24"}}}
	}
}

// An ipamPlugin is another plugin that says which addresses a container gets. Its zero value is none: the daemon does it.
type ipamPlugin struct {
	name  string
	stdin []byte
}

// ipamOf returns the plugin that the configuration names. pool is nil for what needs to know no address.
func (c *config) ipamOf(stdin []byte, pool *cniapi.Pool) (p ipamPlugin, err error) {
	if c.IPAM.Type == "" {
		return p, nil
	}
	d, err := parseDocument(stdin)
	if err != nil {
		return p, err
	}
	if pool != nil {
		d.fill(*pool)
	} else {
		d.fillAny()
	}
	p.name = c.IPAM.Type
	p.stdin, err = json.Marshal(d)
	return p, err
}

// add asks for a container's addresses.
func (p ipamPlugin) add() (*cni.Result, error) {
	raw, err := invoke.DelegateAdd(context.Background(), p.name, p.stdin, nil)
	if err != nil {
		return nil, err
	}
	return cni.NewResultFromResult(raw)
}

func (p ipamPlugin) del() error {
	if p.name == "" {
		return nil
	}
	return invoke.DelegateDel(context.Background(), p.name, p.stdin, nil)
}

func (p ipamPlugin) check() error {
	if p.name == "" {
		return nil
	}
	return invoke.DelegateCheck(context.Background(), p.name, p.stdin, nil)
}

func (p ipamPlugin) gc() error {
	if p.name == "" {
		return nil
	}
	return invoke.DelegateGC(context.Background(), p.name, p.stdin, nil)
}

// bridged returns the configuration of the plugin bridge that the node's pods get: what is given to this plugin stays as it is, and what
// is not is as flannel's plugin has it, with the subnet and the MTU of the node's daemon. pool is nil for what needs to know neither.
func (c *config) bridged(stdin []byte, pool *cniapi.Pool) ([]byte, error) {
	if len(c.RuntimeConfig.PortMappings) > 0 || c.RuntimeConfig.Bandwidth != (cniapi.Bandwidth{}) {
		return nil, configError("attachment bridge: portMappings and bandwidth are for the plugins portmap and bandwidth: chain them, and leave these capabilities out of this one")
	}
	d, err := parseDocument(stdin)
	if err != nil {
		return nil, err
	}
	delete(d, "attachment")
	delete(d, "runDir")
	d["type"] = bridgePlugin
	for key, value := range map[string]any{"bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true, "ipam": map[string]any{"type": hostLocal}} {
		if d[key] == nil {
			d[key] = value
		}
	}
	if pool == nil {
		d.fillAny()
		return json.Marshal(d)
	}
	d.fill(*pool)
	if d["mtu"] == nil {
		d["mtu"] = pool.MTU
	}
	return json.Marshal(d)
}

func (c *config) pool(args *skel.CmdArgs) (pool cniapi.Pool, err error) {
	err = c.ask(cniapi.PathPool, attachment(c, args), &pool)
	return pool, err
}

// addBridged leaves what went wrong to the plugin bridge to undo, and to the runtime's DEL: a DEL from here would take away the interface of
// a container that is there already.
func addBridged(c *config, args *skel.CmdArgs) error {
	pool, err := c.pool(args)
	if err != nil {
		return err
	}
	stdin, err := c.bridged(args.StdinData, &pool)
	if err != nil {
		return err
	}
	result, err := invoke.DelegateAdd(context.Background(), bridgePlugin, stdin, nil)
	if err != nil {
		return err
	}
	return types.PrintResult(result, c.CNIVersion)
}

// gcBridged is for the addresses: the plugin bridge has no GC.
func gcBridged(c *config, args *skel.CmdArgs) error {
	stdin, err := c.bridged(args.StdinData, nil)
	if err != nil {
		return err
	}
	return invoke.DelegateGC(context.Background(), cmp.Or(c.IPAM.Type, hostLocal), stdin, nil)
}

func delBridged(c *config, args *skel.CmdArgs) error {
	stdin, err := c.bridged(args.StdinData, nil)
	if err != nil {
		return err
	}
	return invoke.DelegateDel(context.Background(), bridgePlugin, stdin, nil)
}

func checkBridged(c *config, args *skel.CmdArgs) error {
	stdin, err := c.bridged(args.StdinData, nil)
	if err != nil {
		return err
	}
	return invoke.DelegateCheck(context.Background(), bridgePlugin, stdin, nil)
}
