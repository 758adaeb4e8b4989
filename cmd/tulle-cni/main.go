// Command tulle-cni is the CNI plugin of tulle, for the CNI specification 0.3.1 to 1.1. It checks what it is given, asks the node's
// daemon over its unix socket, and says the answer in the words of the specification. All state is the daemon's.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	cni "github.com/containernetworking/cni/pkg/types/100"
	cniversion "github.com/containernetworking/cni/pkg/version"

	"github.com/tulle-net/tulle/control/cniapi"
)

var version = "unknown" // set by the build

func main() {
	funcs := skel.CNIFuncs{Add: coded(add), Del: coded(del), Check: coded(check), GC: coded(gc), Status: coded(status)}
	err := checkEnvironment()
	if err == nil {
		err = skel.PluginMainFuncsWithError(funcs, cniversion.VersionsStartingFrom("0.3.1"), "CNI plugin tulle "+version)
	}
	if err != nil {
		printError(err)
		os.Exit(1)
	}
}

// checkEnvironment refuses what the skeleton lets through: a namespace that is not named by an absolute path without detours. VERSION is of
// no namespace, and libcni asks for it with the word dummy in place of one.
func checkEnvironment() *types.Error {
	netns := os.Getenv("CNI_NETNS")
	if os.Getenv("CNI_COMMAND") != "VERSION" && netns != "" && (!filepath.IsAbs(netns) || filepath.Clean(netns) != netns) {
		return types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_NETNS %q is not an absolute path without detours", netns), "")
	}
	return nil
}

// speaks is the version of the specification that the input is written by, once that is known.
var speaks = cniversion.Current()

// printError writes an error with the version of the specification, which the library leaves out.
func printError(err *types.Error) {
	out := struct {
		CNIVersion string `json:"cniVersion"`
		*types.Error
	}{speaks, err}
	if werr := json.NewEncoder(os.Stdout).Encode(out); werr != nil {
		fmt.Fprintln(os.Stderr, err, werr)
	}
}

// coded reads the configuration for f, and gives errors of the daemon the form of the specification.
func coded(f func(*config, *skel.CmdArgs) error) func(*skel.CmdArgs) error {
	return func(args *skel.CmdArgs) error {
		c, err := parseConfig(args.StdinData)
		if err == nil {
			speaks = c.CNIVersion
			err = f(c, args)
		}
		if e, ok := err.(*cniapi.Error); ok {
			return types.NewError(uint(e.Code), e.Msg, "")
		}
		return err
	}
}

func attachment(c *config, args *skel.CmdArgs) cniapi.Attachment {
	return cniapi.Attachment{Network: c.Name, ContainerID: args.ContainerID, Interface: args.IfName, Netns: args.Netns}
}

func add(c *config, args *skel.CmdArgs) error {
	if c.Attachment == attachBridge {
		return addBridged(c, args)
	}
	result, err := c.previous()
	if err != nil {
		return err
	}
	made, err := attach(c, args)
	if err != nil {
		return err
	}
	extend(result, args, made)
	result.DNS = c.DNS
	return types.PrintResult(result, c.CNIVersion)
}

// attach asks the daemon for the container's interface, with the addresses of another plugin if one is named.
func attach(c *config, args *skel.CmdArgs) (made cniapi.AddResult, err error) {
	request := cniapi.AddRequest{Attachment: attachment(c, args), Kind: c.Attachment, MAC: c.RuntimeConfig.MAC, Ports: c.RuntimeConfig.PortMappings, Bandwidth: c.RuntimeConfig.Bandwidth}
	if c.IPAM.Type == "" {
		if request.Addrs, err = c.addrs(); err == nil {
			err = c.ask(cniapi.PathAdd, request, &made)
		}
		return made, err
	}
	pool, err := c.pool(args)
	if err != nil {
		return made, err
	}
	ipam, err := c.ipamOf(args.StdinData, &pool)
	if err != nil {
		return made, err
	}
	given, err := ipam.add()
	if err == nil {
		request.Addrs = addrsIn(given)
		err = c.ask(cniapi.PathAdd, request, &made)
	}
	if err != nil {
		if derr := ipam.del(); derr != nil {
			fmt.Fprintf(os.Stderr, "DEL of %s after a failed ADD: %s\n", ipam.name, derr)
		}
	}
	return made, err
}

func del(c *config, args *skel.CmdArgs) error {
	if c.Attachment == attachBridge {
		return delBridged(c, args)
	}
	a := attachment(c, args)
	a.Netns = ""
	if err := c.ask(cniapi.PathDel, a, &cniapi.Empty{}); err != nil {
		return err
	}
	ipam, err := c.ipamOf(args.StdinData, nil)
	if err != nil {
		return err
	}
	return ipam.del()
}

func check(c *config, args *skel.CmdArgs) error {
	if c.Attachment == attachBridge {
		return checkBridged(c, args)
	}
	if c.PrevResult == nil {
		return configError("CHECK without prevResult")
	}
	result, err := c.previous()
	if err != nil {
		return err
	}
	addrs, err := addrsOn(result, args.IfName, args.Netns)
	if err != nil {
		return err
	}
	if err := c.ask(cniapi.PathCheck, cniapi.CheckRequest{Attachment: attachment(c, args), Addrs: addrs}, &cniapi.Empty{}); err != nil {
		return err
	}
	ipam, err := c.ipamOf(args.StdinData, nil)
	if err != nil {
		return err
	}
	return ipam.check()
}

func gc(c *config, args *skel.CmdArgs) error {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(args.StdinData, &keys); err != nil {
		return err
	}
	if keys[validAttachmentsKey] == nil { // an empty list deletes all, and runtimes write null for it: it has to be meant
		return configError("GC without " + validAttachmentsKey)
	}
	request := cniapi.GCRequest{Network: c.Name}
	for _, a := range c.ValidAttachments {
		request.Valid = append(request.Valid, cniapi.Attachment{ContainerID: a.ContainerID, Interface: a.IfName})
	}
	if c.Attachment == attachBridge {
		return gcBridged(c, args)
	}
	if err := c.ask(cniapi.PathGC, request, &cniapi.Empty{}); err != nil {
		return err
	}
	ipam, err := c.ipamOf(args.StdinData, nil)
	if err != nil {
		return err
	}
	return ipam.gc()
}

func status(c *config, _ *skel.CmdArgs) error {
	return c.ask(cniapi.PathStatus, cniapi.Empty{}, &cniapi.Empty{})
}

// extend adds what the daemon made to the result of the plugins before this one.
func extend(result *cni.Result, args *skel.CmdArgs, made cniapi.AddResult) {
	if made.Link != "" {
		result.Interfaces = append(result.Interfaces, &cni.Interface{Name: made.Link, Mac: made.LinkMAC, Mtu: made.MTU})
	}
	result.Interfaces = append(result.Interfaces,
		&cni.Interface{Name: args.IfName, Mac: made.MAC, Mtu: made.MTU, Sandbox: args.Netns})
	index := len(result.Interfaces) - 1
	for _, ip := range made.IPs {
		result.IPs = append(result.IPs, &cni.IPConfig{Interface: &index, Address: ipNet(ip.Address), Gateway: ip.Gateway.AsSlice()})
		result.Routes = append(result.Routes, &types.Route{Dst: everything(ip.Gateway), GW: ip.Gateway.AsSlice()})
	}
}
