package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/tulle-net/tulle/dataplane"
	"github.com/tulle-net/tulle/dataplane/packet"
)

// A metricsServer serves /metrics, /healthz and /readyz. The zero value serves nothing.
type metricsServer struct {
	listener net.Listener
	server   *http.Server
}

func listenMetrics(d *daemon) (*metricsServer, error) {
	if d.config.metricsAddr == "" {
		return &metricsServer{}, nil
	}
	listener, err := net.Listen("tcp", d.config.metricsAddr)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w: choose another --metrics-addr, or none with --metrics-addr ''", err)
	}
	if !onLoopback(listener.Addr()) {
		slog.Warn("metrics are open to whoever reaches the address, without a password: a loopback address keeps them on this node", "address", listener.Addr())
	}
	registry := newRegistry(d)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelError)}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		total, err := d.forwarder.counters(r.Context())
		if err == nil && !total.Ledger().Balanced() {
			err = fmt.Errorf("the packet ledger does not balance: %+v", total.Ledger())
		}
		answerCheck(w, err)
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { answerCheck(w, d.ready()) })
	return &metricsServer{listener, &http.Server{Handler: mux, ReadHeaderTimeout: apiTimeout}}, nil
}

// onLoopback says whether only this node reaches a listener.
func onLoopback(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// answerCheck says ok, or what is wrong with status 503.
func answerCheck(w http.ResponseWriter, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

func (m *metricsServer) run(ctx context.Context) error {
	if m.server == nil {
		<-ctx.Done()
		return nil
	}
	return serveHTTP(ctx, m.server, m.listener)
}

// newRegistry returns the metrics of a daemon and of its process.
func newRegistry(d *daemon) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{d}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}

// A collector turns the daemon's reports into metrics at the moment of a scrape: nothing is counted twice.
type collector struct{ d *daemon }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("tulle_"+name, help, labels, nil)
}

var (
	packetsDesc   = desc("packets_total", "Packets by what became of them, in wire segments.", "verdict")
	framesDesc    = desc("port_frames_total", "Frames through a port; a super-packet is one.", "port", "direction")
	segmentsDesc  = desc("port_segments_total", "Wire segments through a port.", "port", "direction")
	bytesDesc     = desc("port_bytes_total", "Bytes through a port.", "port", "direction")
	queuedDesc    = desc("queued_segments", "Wire segments that the engine holds.")
	peersDesc     = desc("peers", "Other nodes by state.", "source", "state")
	routablePeers = desc("routable_peers", "Other nodes whose subnets are routed to them.")
	subnetDesc    = desc("subnet_info", "Subnet of this node; absent until one is confirmed.", "subnet", "network")
	tablesDesc    = desc("tables_generation", "Generation of the published tables; 0 when nothing is forwarded.")
	repairsDesc   = desc("reconciler_repairs_total", "Kernel state that somebody else changed and the reconciler mended.", "kind")
	reopenedDesc  = desc("tap_reopened_total", "Times the TAP was removed by somebody else and made again.")
	lostDesc      = desc("tap_lost_packets_total", "Packets that the library of the device read and could not hand over.")
	refusedDesc   = desc("gossip_refused_total", "Nodes and messages that gossip did not let in.", "reason")
	outdatedDesc  = desc("gossip_outdated_records_total", "Records older than what is known of their node, which nobody looked at.")
	podDropsDesc  = desc("pod_drops_total", "Packets of pods that the kernel dropped before the engine saw them; a super-packet is one.", "reason")
	outerDesc     = desc("outer_drops_total", "Packets on the underlay with a wrong outer header, or without encapsulation from nobody who may send them.", "reason")
	fallbackDesc  = desc("udp_segment_fallbacks_total", "Super-packets sent segment by segment because UDP_SEGMENT was refused.")
	socketDesc    = desc("underlay_socket_drops_total", "Datagrams that found the underlay's receive socket full.")
	icmpDesc      = desc("icmp_limited_total", "ICMP errors that were not sent because there were too many.")
	flowsDesc     = desc("flows", "Flows in the table.", "family")
	flowRoomDesc  = desc("flows_capacity", "Flows that the table holds at most.", "family")
	flowEndsDesc  = desc("flow_events_total", "What became of flows: inserted, expired, evicted to make room, full when a new one found none.", "event")
	pathMTUDesc   = desc("path_mtu_bytes", "Largest inner packet that reaches the peer in one piece.", "peer", "to")
	pathRTTDesc   = desc("path_rtt_seconds", "Smoothed round trip over the tunnel; absent while nothing answers.", "peer", "to")
	pathUpDesc    = desc("path_up", "1 while probes over the tunnel are answered, 0 when they were once and are not now; absent until one was.", "peer", "to")
	pathLossDesc  = desc("path_loss_ratio", "Share of the last probes that were not answered.", "peer", "to")
	readyDesc     = desc("ready", "1 when pods of this node can reach the others.")
)

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		packetsDesc, framesDesc, segmentsDesc, bytesDesc, queuedDesc, peersDesc, routablePeers, subnetDesc, tablesDesc,
		repairsDesc, reopenedDesc, lostDesc, refusedDesc, outdatedDesc, podDropsDesc, outerDesc, fallbackDesc, socketDesc, readyDesc,
		icmpDesc, flowsDesc, flowRoomDesc, flowEndsDesc, pathMTUDesc, pathRTTDesc, pathUpDesc, pathLossDesc,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	r, err := c.d.status(context.Background())
	if err != nil {
		ch <- prometheus.NewInvalidMetric(packetsDesc, err)
		return
	}
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge := func(d *prometheus.Desc, n float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, n, labels...)
	}
	for v := packet.None + 1; v < packet.NumVerdicts; v++ {
		counter(packetsDesc, r.Verdicts[v.String()], v.String())
	}
	for _, p := range r.Engine.Ports {
		collectPort(counter, p.Name, p.PortCounters)
	}
	for kind, n := range r.Repairs {
		counter(repairsDesc, n, string(kind))
	}
	for reason, n := range r.Refused {
		counter(refusedDesc, n, reason)
	}
	counter(outdatedDesc, r.OutdatedRecords)
	for reason, n := range r.PodDrops {
		counter(podDropsDesc, n, string(reason))
	}
	for reason, n := range r.Underlay.OuterDrops {
		counter(outerDesc, n, reason)
	}
	counter(reopenedDesc, r.TAP.Reopened)
	counter(lostDesc, r.TAP.Lost)
	counter(fallbackDesc, r.Underlay.Fallbacks)
	counter(socketDesc, r.Underlay.SocketDrops)
	counter(icmpDesc, r.Engine.ICMPLimited)
	for event, n := range map[string]uint64{"inserted": r.Flows.Inserted, "expired": r.Flows.Expired, "evicted": r.Flows.Evicted, "full": r.Flows.Full, "over_quota": r.Flows.OverQuota} {
		counter(flowEndsDesc, n, event)
	}
	collectFlows(gauge, &r.Flows)
	gauge(queuedDesc, float64(r.Engine.Ledger.Queued))
	gauge(tablesDesc, float64(r.Engine.Generation))
	collectPeers(gauge, r)
}

func collectPort(counter func(*prometheus.Desc, uint64, ...string), name string, p dataplane.PortCounters) {
	counter(framesDesc, p.FramesIn, name, "in")
	counter(framesDesc, p.FramesOut, name, "out")
	counter(segmentsDesc, p.SegmentsIn, name, "in")
	counter(segmentsDesc, p.SegmentsOut, name, "out")
	counter(bytesDesc, p.BytesIn, name, "in")
	counter(bytesDesc, p.BytesOut, name, "out")
}

func collectFlows(gauge func(*prometheus.Desc, float64, ...string), t *tableReport) {
	gauge(flowsDesc, float64(t.Flows4), "ipv4")
	gauge(flowsDesc, float64(t.Flows6), "ipv6")
	gauge(flowRoomDesc, float64(t.Capacity4), "ipv4")
	gauge(flowRoomDesc, float64(t.Capacity6), "ipv6")
}

func collectPaths(gauge func(*prometheus.Desc, float64, ...string), p *peerReport) {
	for _, path := range p.Paths {
		gauge(pathMTUDesc, float64(path.MTU), p.Name, path.To)
		gauge(pathLossDesc, path.Loss, p.Name, path.To)
		if path.RTTMillis != nil {
			gauge(pathRTTDesc, *path.RTTMillis/1000, p.Name, path.To)
			gauge(pathUpDesc, map[bool]float64{true: 1}[path.Reason == ""], p.Name, path.To)
		}
	}
}

func collectPeers(gauge func(*prometheus.Desc, float64, ...string), r *statusReport) {
	states, routable := map[[2]string]float64{}, 0.0
	for _, p := range r.Peers {
		states[[2]string{p.Source, p.State}]++
		if p.Routable {
			routable++
			collectPaths(gauge, &p)
		}
	}
	for k, n := range states {
		gauge(peersDesc, n, k[0], k[1])
	}
	gauge(routablePeers, routable)
	if r.Node.Subnet != "" {
		gauge(subnetDesc, 1, r.Node.Subnet, r.Node.Network)
	}
	ready := 0.0
	if r.NotReady == "" {
		ready = 1
	}
	gauge(readyDesc, ready)
}
