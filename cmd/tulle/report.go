package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/control/etcd"
	"github.com/tulle-net/tulle/control/gossip"
	"github.com/tulle-net/tulle/control/netconf"
	"github.com/tulle-net/tulle/control/pin"
	"github.com/tulle-net/tulle/dataplane"
	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tap"
)

// schemaVersion is that of every JSON report: it changes when a field changes its meaning or goes.
const schemaVersion = 1

// A statusReport is the answer to tulle status.
type statusReport struct {
	SchemaVersion int               `json:"schemaVersion"`
	Version       string            `json:"version"`
	BuildID       string            `json:"buildID"` // the linker's: every other binary has another one
	PID           int               `json:"pid"`
	UptimeSeconds float64           `json:"uptimeSeconds"`
	Node          nodeReport        `json:"node"`
	TAP           tapReport         `json:"tap"`
	Underlay      underlayReport    `json:"underlay"`
	Peers         []peerReport      `json:"peers"`
	Engine        engineReport      `json:"engine"`
	Flows         tableReport       `json:"flows"`
	Holder        holderReport      `json:"holder"`
	Verdicts      map[string]uint64 `json:"verdicts"` // every verdict, in wire segments
	// PodDrops counts what the kernel dropped of pods behind links before the engine saw it, by reason; a super-packet is one.
	PodDrops map[pin.Reason]uint64 `json:"podDrops"`
	// Repairs counts what somebody else changed in the kernel and the reconciler mended, by kind.
	Repairs map[control.Change]uint64 `json:"repairs"`
	// Refused counts what gossip did not let in, by reason.
	Refused map[string]uint64 `json:"refused"`
	// OutdatedRecords counts gossip's records that were older than what is known of their node; nobody looks at those.
	OutdatedRecords uint64 `json:"outdatedRecords"`

	NotReady string   `json:"notReady,omitempty"` // why pods of this node are not reachable
	Problems []string `json:"problems"`           // empty when the node is healthy
}

type nodeReport struct {
	Name       string `json:"name"`
	Network    string `json:"network"` // empty without IPv4, like subnet, publicIP and the addresses
	Subnet     string `json:"subnet"`  // empty until one is confirmed
	Store      string `json:"store"`
	PublicIP   string `json:"publicIP"`
	Backend    string `json:"backend"`
	VNI        uint32 `json:"vni"`
	Port       uint16 `json:"port"`
	VTEPMAC    string `json:"vtepMAC"`    // of both families
	TunnelAddr string `json:"tunnelAddr"` // of the node itself inside the network
	EngineAddr string `json:"engineAddr"`
	MTU        int    `json:"mtu"` // of pods, bytes

	IPv6Network    string `json:"ipv6Network,omitempty"`
	IPv6Subnet     string `json:"ipv6Subnet,omitempty"`
	PublicIPv6     string `json:"publicIPv6,omitempty"`
	IPv6TunnelAddr string `json:"ipv6TunnelAddr,omitempty"`
	IPv6EngineAddr string `json:"ipv6EngineAddr,omitempty"`
}

type tapReport struct {
	Name     string   `json:"name"`
	Device   tap.Kind `json:"device"`
	Queues   int      `json:"queues"`
	Offloads []string `json:"offloads"`
	Reopened uint64   `json:"reopened"` // times it was removed by somebody else and made again
	Cannot   []string `json:"cannot"`   // what a tap does and this device does not, in sentences

	// Kernel is what the kernel counts of the same frames; nil for other devices than a tap, and while the TAP is being made again.
	Kernel *linkReport `json:"kernel,omitempty"`

	// Packets as the kernel's link counts them, a super-packet as one, where the frames of the port "tap" are not the same: not
	// for a tap.
	Read    uint64 `json:"read,omitempty"`
	Written uint64 `json:"written,omitempty"`
	Lost    uint64 `json:"lost"` // of those read, by the device's library: they are in no other counter
}

type engineReport struct {
	Generation uint64           `json:"generation"` // of the tables
	Workers    int              `json:"workers"`
	Ports      []portReport     `json:"ports"`
	Ledger     dataplane.Ledger `json:"ledger"`
	Balanced   bool             `json:"balanced"`  // no packet missing, none counted twice
	Observers  int              `json:"observers"` // of packets: running traces and captures
	// ICMPLimited counts the ICMP errors that were not sent because there were too many.
	ICMPLimited uint64 `json:"icmpLimited"`
}

type portReport struct {
	Name string `json:"name"`
	dataplane.PortCounters
}

// reasons lists those by which each store refuses what it hears.
var reasons = map[string][]string{storeGossip: gossip.Reasons(), storeEtcd: etcd.Reasons()}

// status collects the report, the counters at a batch boundary of each worker.
func (d *daemon) status(ctx context.Context) (*statusReport, error) {
	total, kernel, err := d.forwarder.checkedCounters(ctx)
	if err != nil {
		return nil, err
	}
	state, problems, refused := d.network.report()
	r := &statusReport{
		SchemaVersion: schemaVersion, Version: versionString(), BuildID: buildID(), PID: os.Getpid(),
		UptimeSeconds: time.Since(d.started).Seconds(),
		Node:          d.nodeReport(state),
		TAP:           d.forwarder.tapReport(),
		Peers:         d.network.peers(),
		Engine:        d.engineReport(&total),
		Flows:         d.forwarder.tableReport(),
		Holder:        d.forwarder.held.reported(),
		Verdicts:      map[string]uint64{},
		Repairs:       d.reconciler.Repairs(),
		Refused:       map[string]uint64{},
		Problems:      problems,
	}
	if d.store != nil {
		r.OutdatedRecords = d.store.View().Outdated
	}
	for _, reason := range reasons[d.config.store] {
		r.Refused[reason] = refused[reason]
	}
	for v := packet.None + 1; v < packet.NumVerdicts; v++ {
		r.Verdicts[v.String()] = total.Verdicts[v]
	}
	if r.Underlay, err = d.underlayReport(); err != nil {
		return nil, err
	}
	if r.PodDrops, err = d.podDrops(); err != nil {
		return nil, err
	}
	r.Problems = append(r.Problems, r.Underlay.NoNextHop...)
	for _, p := range r.Peers {
		for _, path := range p.Paths {
			if path.Reason != "" {
				r.Problems = append(r.Problems, fmt.Sprintf("path to %s: %s", p.Name, path.Reason))
			}
		}
	}
	if err := d.ready(); err != nil {
		r.NotReady = err.Error()
	}
	if r.TAP.Kernel = kernel; kernel != nil && !kernel.Agrees {
		r.Problems = append(r.Problems, "engine and kernel do not count the same frames of the TAP")
	}
	if !r.Engine.Balanced {
		r.Problems = append(r.Problems, "the packet ledger does not balance")
	}
	return r, nil
}

// podDrops are none where there is no nftables, and so no pod.
func (d *daemon) podDrops() (map[pin.Reason]uint64, error) {
	if d.config.noNetfilter {
		return map[pin.Reason]uint64{}, nil
	}
	return pin.Drops()
}

func (d *daemon) nodeReport(s control.State) nodeReport {
	r := nodeReport{
		Name: s.Self.Name, Network: text(s.Network), Subnet: text(s.Self.Subnet), PublicIP: text(s.Self.PublicIP),
		Backend: s.Self.BackendType, VNI: s.Self.VNI, Port: s.Port, MTU: s.MTU, Store: d.config.store,
		IPv6Network: text(s.IPv6Network), IPv6Subnet: text(s.Self.IPv6Subnet), PublicIPv6: text(s.Self.PublicIPv6),
	}
	if s.Self.BackendType == netconf.TypeVXLAN {
		r.VTEPMAC = s.Self.VTEP.String()
	}
	if subnet := s.Self.Subnet; subnet.IsValid() {
		r.TunnelAddr, r.EngineAddr = control.TunnelAddr(subnet).String(), control.EngineAddr(subnet).String()
	}
	if subnet := s.Self.IPv6Subnet; subnet.IsValid() {
		r.IPv6TunnelAddr, r.IPv6EngineAddr = control.TunnelAddr(subnet).String(), control.EngineAddr(subnet).String()
	}
	return r
}

func (d *daemon) engineReport(total *dataplane.Counters) engineReport {
	r := engineReport{Workers: d.config.workers, Ledger: total.Ledger(), ICMPLimited: total.ICMPLimited}
	if set := d.forwarder.tables(); set != nil {
		r.Generation = set.Generation
	}
	r.Balanced, r.Observers = r.Ledger.Balanced(), d.forwarder.observing()
	for side, p := range total.Ports {
		r.Ports = append(r.Ports, portReport{dataplane.Side(side).String(), p})
	}
	return r
}

// A peersReport is the answer to tulle peers.
type peersReport struct {
	SchemaVersion int          `json:"schemaVersion"`
	Peers         []peerReport `json:"peers"`
	Problems      []string     `json:"problems"`
}

func (d *daemon) peers(context.Context) (*peersReport, error) {
	_, problems, _ := d.network.report()
	return &peersReport{SchemaVersion: schemaVersion, Peers: d.network.peers(), Problems: problems}, nil
}

// A routesReport is the answer to tulle routes.
type routesReport struct {
	SchemaVersion int           `json:"schemaVersion"`
	Generation    uint64        `json:"generation"`
	Routes        []routeReport `json:"routes"`
}

type routeReport struct {
	Prefix   string `json:"prefix"`
	Kind     string `json:"kind"`
	Peer     string `json:"peer,omitempty"`
	Endpoint string `json:"endpoint,omitempty"`
	VTEPMAC  string `json:"vtepMAC,omitempty"`
	PodPort  uint32 `json:"podPort,omitempty"` // of a local route: the number of the pod's own port, absent for the TAP
}

// routes lists the engine's FIB as published.
func (d *daemon) routes(context.Context) (*routesReport, error) {
	r := &routesReport{SchemaVersion: schemaVersion, Routes: []routeReport{}}
	set := d.forwarder.tables()
	if set == nil {
		return r, nil
	}
	r.Generation = set.Generation
	for route := range set.Routes() {
		e := routeReport{Prefix: route.Prefix.String(), Kind: route.Kind.String()}
		if p := route.Peer; p != nil {
			e.Peer, e.Endpoint, e.VTEPMAC = p.Name, p.Endpoint.String(), p.VTEP.String()
		}
		if p := route.Pod; p != nil {
			e.PodPort = p.Port
		}
		r.Routes = append(r.Routes, e)
	}
	return r, nil
}
