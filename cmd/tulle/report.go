package main

import (
	"context"
	"os"
	"time"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/control/netconf"
	"github.com/tulle-net/tulle/dataplane"
	"github.com/tulle-net/tulle/dataplane/packet"
)

// schemaVersion is that of every JSON report: it changes when a field changes its meaning or goes.
const schemaVersion = 1

// A statusReport is the answer to tulle status.
type statusReport struct {
	SchemaVersion int               `json:"schemaVersion"`
	Version       string            `json:"version"`
	PID           int               `json:"pid"`
	UptimeSeconds float64           `json:"uptimeSeconds"`
	Node          nodeReport        `json:"node"`
	TAP           tapReport         `json:"tap"`
	Underlay      underlayReport    `json:"underlay"`
	Peers         []peerReport      `json:"peers"`
	Engine        engineReport      `json:"engine"`
	Verdicts      map[string]uint64 `json:"verdicts"` // every verdict, in wire segments
	Problems      []string          `json:"problems"` // empty when the node is healthy
}

type nodeReport struct {
	Name       string `json:"name"`
	Network    string `json:"network"`
	Subnet     string `json:"subnet"`
	PublicIP   string `json:"publicIP"`
	Backend    string `json:"backend"`
	VNI        uint32 `json:"vni"`
	Port       uint16 `json:"port"`
	VTEPMAC    string `json:"vtepMAC"`
	TunnelAddr string `json:"tunnelAddr"` // of the node itself inside the network
	EngineAddr string `json:"engineAddr"`
	MTU        int    `json:"mtu"` // of pods, bytes
}

type tapReport struct {
	Name     string   `json:"name"`
	Queues   int      `json:"queues"`
	Offloads []string `json:"offloads"`
}

type underlayReport struct {
	Kind        string   `json:"kind"`
	Link        string   `json:"link"`
	LinkMTU     int      `json:"linkMTU"`
	Offloads    []string `json:"offloads"`
	Fallbacks   uint64   `json:"fallbacks"`   // super-packets sent without UDP_SEGMENT because it was refused
	QueuedBytes uint64   `json:"queuedBytes"` // in the receive sockets now
	SocketDrops uint64   `json:"socketDrops"` // datagrams that found them full
}

type peerReport struct {
	Name     string `json:"name"`
	PublicIP string `json:"publicIP"`
	Subnet   string `json:"subnet"`
	Backend  string `json:"backend"`
	VTEPMAC  string `json:"vtepMAC,omitempty"`
	Ignored  string `json:"ignored,omitempty"` // why the peer has no routes
}

type engineReport struct {
	Generation uint64           `json:"generation"` // of the tables
	Workers    int              `json:"workers"`
	Ports      []portReport     `json:"ports"`
	Ledger     dataplane.Ledger `json:"ledger"`
	Balanced   bool             `json:"balanced"` // no packet missing, none counted twice
}

type portReport struct {
	Name string `json:"name"`
	dataplane.PortCounters
}

// status collects the report, the counters at a batch boundary of each worker.
func (d *daemon) status(ctx context.Context) (*statusReport, error) {
	all, err := d.engine.Counters(ctx)
	if err != nil {
		return nil, err
	}
	total := dataplane.Sum(all)
	r := &statusReport{
		SchemaVersion: schemaVersion, Version: versionString(), PID: os.Getpid(),
		UptimeSeconds: time.Since(d.started).Seconds(),
		Node:          d.nodeReport(),
		TAP:           tapReport{Name: d.tap.Name, Queues: len(d.tap.Queues), Offloads: d.tap.Offloads.Names()},
		Engine:        d.engineReport(&total, len(all)),
		Verdicts:      map[string]uint64{},
		Problems:      []string{},
	}
	for v := packet.None + 1; v < packet.NumVerdicts; v++ {
		r.Verdicts[v.String()] = total.Verdicts[v]
	}
	if r.Underlay, err = d.underlayReport(); err != nil {
		return nil, err
	}
	r.Peers = d.peerReports()
	if view := d.view.Load(); view.problem != "" {
		r.Problems = append(r.Problems, view.problem)
	}
	if !r.Engine.Balanced {
		r.Problems = append(r.Problems, "the packet ledger does not balance")
	}
	return r, nil
}

func (d *daemon) nodeReport() nodeReport {
	c := d.config
	return nodeReport{
		Name: c.self.Name, Network: c.network.String(), Subnet: c.self.Subnet.String(), PublicIP: c.self.PublicIP.String(),
		Backend: c.self.BackendType, VNI: c.self.VNI, Port: c.vxlan.Port, VTEPMAC: c.self.VTEP.String(),
		TunnelAddr: control.TunnelAddr(c.self.Subnet).String(), EngineAddr: control.EngineAddr(c.self.Subnet).String(), MTU: c.mtu,
	}
}

func (d *daemon) engineReport(total *dataplane.Counters, workers int) engineReport {
	r := engineReport{Generation: d.engine.Tables().Generation, Workers: workers, Ledger: total.Ledger()}
	r.Balanced = r.Ledger.Balanced()
	for side, p := range total.Ports {
		r.Ports = append(r.Ports, portReport{dataplane.Side(side).String(), p})
	}
	return r
}

func (d *daemon) underlayReport() (underlayReport, error) {
	r := underlayReport{Kind: "udp", Link: d.config.link.Name, LinkMTU: d.config.link.MTU, Offloads: d.underlays[0].Offloads()}
	for _, u := range d.underlays {
		bytes, drops, err := u.QueueDepth()
		if err != nil {
			return r, err
		}
		r.Fallbacks += u.Fallbacks()
		r.QueuedBytes += bytes
		r.SocketDrops += drops
	}
	return r, nil
}

func (d *daemon) peerReports() []peerReport {
	view := d.view.Load()
	reasons := map[control.Node]string{}
	for _, i := range view.ignored {
		reasons[i.Peer] = i.Reason
	}
	peers := []peerReport{}
	for _, n := range view.nodes {
		p := peerReport{Name: n.Name, PublicIP: n.PublicIP.String(), Subnet: n.Subnet.String(), Backend: n.BackendType, Ignored: reasons[n]}
		if n.BackendType == netconf.TypeVXLAN {
			p.VTEPMAC = n.VTEP.String()
		}
		peers = append(peers, p)
	}
	return peers
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
}

// routes lists the engine's FIB as published.
func (d *daemon) routes(context.Context) (*routesReport, error) {
	set := d.engine.Tables()
	r := &routesReport{SchemaVersion: schemaVersion, Generation: set.Generation, Routes: []routeReport{}}
	for route := range set.Routes() {
		e := routeReport{Prefix: route.Prefix.String(), Kind: route.Kind.String()}
		if p := route.Peer; p != nil {
			e.Peer, e.Endpoint, e.VTEPMAC = p.Name, p.Endpoint.String(), p.VTEP.String()
		}
		r.Routes = append(r.Routes, e)
	}
	return r, nil
}
