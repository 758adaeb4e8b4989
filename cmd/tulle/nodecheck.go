package main

import (
	"slices"
	"strings"

	"github.com/tulle-net/tulle/control/gossip"
	"github.com/tulle-net/tulle/dataplane/tap"
)

// check refuses what this version cannot do.
func (o *nodeOptions) check() error {
	switch {
	case o.underlay != underlayUDP && o.underlay != underlayPacket:
		return usageError("--underlay %s: unknown (allowed: udp, packet)", o.underlay)
	case o.tunnelGSO != tunnelGSOAuto && o.tunnelGSO != tunnelGSOOff:
		return usageError("--tunnel-gso %s: unknown (allowed: auto, off)", o.tunnelGSO)
	case o.holder != holderAuto && o.holder != holderOff:
		return usageError("--holder %s: unknown (allowed: auto, off)", o.holder)
	case o.takeover && o.holder == holderOff:
		return usageError("--takeover with --holder off: what is taken over comes from the holder")
	case o.maxFlows < leastFlows || o.maxFlows > mostFlows:
		return usageError("--max-flows %d: out of range (allowed: %d to %d)", o.maxFlows, leastFlows, mostFlows)
	case o.perSource < 0 || o.perSource > mostFlows:
		return usageError("--max-flows-per-source %d: out of range (allowed: 0 to %d)", o.perSource, mostFlows)
	case o.majority < 0 || o.majority > gossip.MaxNodes:
		return usageError("--majority %d: out of range (allowed: 0 to %d)", o.majority, gossip.MaxNodes)
	case o.reclaim < 0 || o.reclaim > 0 && o.reclaim < leastReclaim:
		return usageError("--reclaim-after %v: out of range (allowed: 0, or %v and more)", o.reclaim, leastReclaim)
	case o.workers < 1 || o.workers > maxWorkers:
		return usageError("--workers %d: out of range (allowed: 1 to %d)", o.workers, maxWorkers)
	case o.busyPoll < 0 || o.busyPoll > maxBusyPoll:
		return usageError("--busy-poll %v: out of range (allowed: 0 to %v)", o.busyPoll, maxBusyPoll)
	case o.gossipPort < 1 || o.gossipPort > 65535:
		return usageError("--gossip-port %d: out of range (allowed: 1 to 65535)", o.gossipPort)
	}
	if err := o.checkDevice(); err != nil {
		return err
	}
	if err := o.cni.check(); err != nil {
		return err
	}
	return o.checkStore()
}

func (o *nodeOptions) checkDevice() error {
	switch kind := tap.Kind(o.device); {
	case !slices.Contains(tap.Kinds(), kind):
		return usageError("--device %s: unknown (allowed: %s)", o.device, joinKinds())
	case kind.SingleQueue() && o.workers > 1:
		return usageError("--workers %d with --device %s: its library has a single queue, which serves one worker: leave out --workers or use --device tap", o.workers, o.device)
	case kind.SingleQueue() && o.keep:
		return usageError("--keep with --device %s: the device ends with its single queue: leave out --keep or use --device tap", o.device)
	}
	return nil
}

// joinKinds lists the devices.
func joinKinds() string {
	var names []string
	for _, k := range tap.Kinds() {
		names = append(names, string(k))
	}
	return strings.Join(names, ", ")
}

func (o *nodeOptions) checkStore() error {
	switch {
	case o.etcd.endpoints != "" && o.store != storeEtcd:
		return usageError("--etcd-endpoints with --store %s: choose one of both", o.store)
	case o.store == storeFile && o.subnet == "":
		return usageError("--store file: --subnet is missing: give this node's subnet, such as --subnet 10.244.1.0/24")
	case o.store == storeFile:
		return nil
	case o.store == storeEtcd:
		return o.etcd.check()
	case o.store != storeGossip:
		return usageError("--store %s: unknown (allowed: gossip, etcd, file)", o.store)
	case o.keyFile == "" && !o.insecure:
		return usageError("a cluster key is missing: make one with tulle keygen and give every node the same with --key-file FILE, or give --insecure-no-key")
	case o.keyFile != "" && o.insecure:
		return usageError("--key-file and --insecure-no-key exclude each other")
	}
	return nil
}
