package dataplane

import (
	"testing"
	"time"

	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/conntrack"
	"github.com/tulle-net/tulle/dataplane/fragment"
	"github.com/tulle-net/tulle/dataplane/packet"
)

const (
	podA6    = "fd00:1::9"
	podB6    = "fd00:2::9"
	engineA6 = "fd00:1::ffff:ffff:ffff:fffe"
)

func init() { verdictCases = append(verdictCases, stageCases...) }

// out6 is a pod's UDP packet in IPv6.
func out6(dst string) func(testing.TB) memFrame {
	return plain(func(t testing.TB) []byte { return udpFrame(t, macA, gateA, podA6, dst, 64) })
}

// echoFromB is an echo message of node b's.
func echoFromB(from, to string, reply bool) func(testing.TB) memFrame {
	return func(t testing.TB) memFrame { return wrapB(echoFrame(t, macB, macA, from, to, reply)) }
}

// piece is one fragment of a pod's UDP packet of 64 bytes, cut at 24 and 48 bytes of IP payload.
func piece(i int) func(testing.TB) memFrame {
	return plain(func(t testing.TB) []byte {
		return fragments(udpFrame(t, macA, gateA, "10.0.1.9", "10.0.2.9", 64), 77, 24, 48)[i]
	})
}

// lowTTL is a pod's packet with the given TTL.
func lowTTL(ttl byte) func(testing.TB) memFrame {
	return plain(func(t testing.TB) []byte {
		f := udpFrame(t, macA, gateA, "10.0.1.9", "10.0.2.9", 64)
		f[14+8] = ttl
		fixIPChecksum(f)
		return f
	})
}

func hop(r *rig) { r.engine.DecrementTTL = true }

// stageCases go on with verdictCases: IPv6, ICMP, flows, fragments.
var stageCases = []verdictCase{
	{"IPv6 to a peer", TAP, out6(podB6), packet.Encapsulated, 1, nil},
	{"IPv6 super-packet to a peer", TAP, func(t testing.TB) memFrame { return tcpSuper(t, podA6, podB6, 5000, 1300) }, packet.Encapsulated, 4, nil},
	{"IPv6 hairpin to a local pod", TAP, out6("fd00:1::7"), packet.Delivered, 1, nil},
	{"IPv6 from a peer", Underlay6, inFrom(podB6, podA6), packet.Delivered, 1, nil},
	{"ND for the engine", TAP, plain(func(t testing.TB) []byte { return solicitation(t, macA, gateA, "fd00:1::", engineA6) }), packet.NDAnswered, 1, nil},
	{"ND for a remote pod", TAP, plain(func(t testing.TB) []byte { return solicitation(t, macA, gateA, "fd00:1::", podB6) }), packet.NDAnswered, 1, nil},
	{"echo of the engine's", TAP, plain(func(t testing.TB) []byte { return echoFrame(t, macA, gateA, "10.0.1.9", "10.0.1.254", false) }), packet.EchoAnswered, 1, nil},
	{"IPv6 echo of the engine's", TAP, plain(func(t testing.TB) []byte { return echoFrame(t, macA, gateA, podA6, engineA6, false) }), packet.EchoAnswered, 1, nil},
	{"echo of the engine's, by a peer", Underlay, echoFromB("10.0.2.0", "10.0.1.254", false), packet.EchoAnswered, 1, nil},
	{"IPv6 echo of the engine's, by a peer", Underlay6, echoFromB("fd00:2::", engineA6, false), packet.EchoAnswered, 1, nil},
	{"answer to a probe", Underlay, echoFromB("10.0.2.0", "10.0.1.254", true), packet.ProbeAnswered, 1, nil},
	{"answer to an IPv6 probe", Underlay6, echoFromB("fd00:2::", engineA6, true), packet.ProbeAnswered, 1, nil},
	{"probe's answer from the own node", TAP, plain(func(t testing.TB) []byte { return echoFrame(t, macA, gateA, "10.0.1.9", "10.0.1.254", true) }), packet.DropEngine, 1, nil},
	{"UDP to the engine", Underlay, inFrom("10.0.2.9", "10.0.1.254"), packet.DropEngine, 1, nil},

	{"duplicate address detection", TAP, plain(func(t testing.TB) []byte { return solicitation(t, macA, gateA, "::", engineA6) }), packet.DropND, 1, nil},
	{"ND for a local pod", TAP, plain(func(t testing.TB) []byte { return solicitation(t, macA, gateA, "fd00:1::", podA6) }), packet.DropND, 1, nil},
	{"ND through the tunnel", Underlay6, func(t testing.TB) memFrame { return wrapB(solicitation(t, macB, macA, "fd00:2::", podA6)) }, packet.DropND, 1, nil},
	{"IPv6 multicast", TAP, out6("ff02::fb"), packet.DropMulticast, 1, nil},
	{"routing header of type 0", TAP, plain(func(t testing.TB) []byte { return withRouting0(udpFrame(t, macA, gateA, podA6, podB6, 64)) }), packet.DropExtension, 1, nil},
	{"inner L4 checksum", Underlay, edit(func(b []byte) { b[len(b)-1]++ }), packet.DropL4Checksum, 1, nil},
	{"IPv6 inner L4 checksum", Underlay6, func(t testing.TB) memFrame {
		m := fromB(t, podB6, podA6)
		m.data[len(m.data)-1]++
		return m
	}, packet.DropL4Checksum, 1, nil},
	{"loopback source", TAP, plain(func(t testing.TB) []byte { return udpFrame(t, macA, gateA, "127.0.0.1", "10.0.2.9", 64) }), packet.DropMartian, 1, nil},
	{"IPv6 link-local destination", TAP, out6("fe80::1"), packet.DropMartian, 1, nil},
	{"IPv4 inner over the IPv6 underlay", Underlay6, func(t testing.TB) memFrame {
		m := fromB(t, "10.0.2.9", "10.0.1.9")
		m.remote = nodeB6
		return m
	}, packet.DropInnerSource, 1, nil},
	{"tunnel packet in the tunnel, to the node", Underlay, func(t testing.TB) memFrame {
		return wrapB(udpFrameTo(t, macB, macA, "10.0.2.9", "10.0.1.0", 8472, 64))
	}, packet.DropNested, 1, nil},
	{"tunnel packet in the tunnel, to a pod", Underlay, func(t testing.TB) memFrame {
		return wrapB(udpFrameTo(t, macB, macA, "10.0.2.9", "10.0.1.9", 8472, 64))
	}, packet.Delivered, 1, nil},

	{"ICMP error without a flow", Underlay, func(t testing.TB) memFrame {
		return wrapB(portUnreachable(t, macB, macA, udpFrame(t, macA, gateA, "10.0.1.9", "10.0.2.9", 64)))
	}, packet.DropUnrelated, 1, nil},
	{"ICMPv6 error without a flow", Underlay6, func(t testing.TB) memFrame {
		return wrapB(portUnreachable(t, macB, macA, udpFrame(t, macA, gateA, podA6, podB6, 64)))
	}, packet.DropUnrelated, 1, nil},
	{"new flow, full table", TAP, outTo("10.0.2.9"), packet.DropFlowTableFull, 1, func(r *rig) { r.engine.Flows = fullTable(r.t) }},
	{"new flow, source with too many", TAP, outTo("10.0.2.9"), packet.DropFlowQuota, 1, func(r *rig) { r.engine.Flows = spentQuota(r.t, "10.0.1.9") }},

	{"first fragment", TAP, piece(0), packet.Encapsulated, 1, nil},
	{"first fragment too short for its TCP header", TAP, plain(func(t testing.TB) []byte {
		return fragments(tcpSuper(t, "10.0.1.9", "10.0.2.9", 64, 1400).data, 77, 16)[0]
	}), packet.DropFragmentTiny, 1, nil},
	{"fragment twice", TAP, piece(0), packet.DropFragmentOverlap, 1, func(r *rig) { r.send(TAP, piece(0)(r.t)) }},
	{"fragment without its first", TAP, piece(1), packet.DropFragmentOrphan, 1, func(r *rig) {
		r.after = func() {
			if n := r.w.snapshot().Queued; n != 1 {
				r.t.Errorf("%d segments queued, want the one that waits", n)
			}
			r.now.Add(int64(time.Minute))
			r.w.begin()
		}
	}},
	{"fragment without its first, no room", TAP, piece(1), packet.DropFragmentMemory, 1, func(r *rig) {
		r.w.outFragments = fragment.New(fragment.Limits{Held: 1})
		other := fragments(udpFrame(r.t, macA, gateA, "10.0.1.9", "10.0.2.9", 64), 78, 24)
		r.send(TAP, memFrame{data: other[1]})
		r.t.Cleanup(func() { r.send(TAP, memFrame{data: other[0]}) })
	}},

	{"TTL 1 on a hop", TAP, lowTTL(1), packet.DropTTL, 1, hop},
	{"TTL 2 on a hop", TAP, lowTTL(2), packet.Encapsulated, 1, hop},
	{"TTL 1, no hop", TAP, lowTTL(1), packet.Encapsulated, 1, nil},
	{"TTL 1 on a hop, from a peer", Underlay, func(t testing.TB) memFrame {
		f := lowTTL(1)(t).data
		copy(f, macA[:])
		copy(f[6:], macB[:])
		copy(f[26:], []byte{10, 0, 2, 9, 10, 0, 1, 9})
		fixIPChecksum(f)
		f[40], f[41] = 0, 0 // no UDP checksum
		return wrapB(f)
	}, packet.DropTTL, 1, hop},
	{"larger than the path", TAP, plain(func(t testing.TB) []byte { return udpFrame(t, macA, gateA, "10.0.1.9", "10.0.3.9", narrowMTU-27) }), packet.DropTooBig, 1, nil},
	{"larger than the path, may be fragmented", TAP, plain(func(t testing.TB) []byte {
		f := udpFrame(t, macA, gateA, "10.0.1.9", "10.0.3.9", narrowMTU-27)
		f[20] &^= 0x40
		fixIPChecksum(f)
		return f
	}), packet.Encapsulated, 1, nil},
	{"IPv6 of 1,280 bytes on a path that takes less", TAP, plain(func(t testing.TB) []byte { return udpFrame(t, macA, gateA, podA6, "fd00:3::9", minMTU6-48) }),
		packet.Encapsulated, 1, func(r *rig) { r.engine.Tables().Lookup(addr("fd00:3::9")).Peer.MTU = 1210 }},
	{"as large as the path", TAP, plain(func(t testing.TB) []byte { return udpFrame(t, macA, gateA, "10.0.1.9", "10.0.3.9", narrowMTU-28) }), packet.Encapsulated, 1, nil},
	{"IPv6 larger than the path", TAP, plain(func(t testing.TB) []byte { return udpFrame(t, macA, gateA, podA6, "fd00:3::9", narrowMTU-47) }), packet.DropTooBig, 1, nil},
	{"super-packet larger than the path", TAP, func(t testing.TB) memFrame { return tcpSuper(t, "10.0.1.9", "10.0.3.9", 5000, 1400) }, packet.DropTooBig, 4, nil},
	{"IPv6 no route", TAP, out6("2001:db8:99::1"), packet.DropNoRoute, 1, nil},
	{"IPv6 nobody's subnet", TAP, out6("fd00:9::9"), packet.DropReject, 1, nil},
}

// spentQuota is a flow table in which a source has the one flow that it may have.
func spentQuota(t testing.TB, source string) *conntrack.Table {
	table, err := conntrack.New(conntrack.Config{Flows4: 100, Flows6: 100, PerSource: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { table.Close() })
	table.Insert(&conntrack.Packet{Tuple: conntrack.Tuple{Src: addr(source), Dst: addr("10.0.2.77"), DstPort: 53, Proto: packet.ProtoUDP}}, conntrack.NAT{}, time.Hour)
	return table
}

// fullTable is a flow table that is full of flows which are in use.
func fullTable(t testing.TB) *conntrack.Table {
	table, err := conntrack.New(conntrack.Config{Flows4: 1, Flows6: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { table.Close() })
	there := conntrack.Tuple{Src: addr("10.0.1.1"), Dst: addr("10.0.2.1"), DstPort: 53, Proto: packet.ProtoUDP}
	for port := range 10000 {
		there.SrcPort = uint16(port)
		back := conntrack.Packet{Tuple: conntrack.Tuple{Src: there.Dst, Dst: there.Src, SrcPort: there.DstPort, DstPort: there.SrcPort, Proto: there.Proto}}
		table.Insert(&conntrack.Packet{Tuple: there}, conntrack.NAT{}, time.Hour)
		table.Lookup(&back, time.Hour)
	}
	return table
}

// withRouting0 puts a routing header of type 0 (RFC 5095) behind the IPv6 header of an Ethernet frame.
func withRouting0(frame []byte) []byte {
	rh := []byte{frame[20], 2, 0, 1, 0, 0, 0, 0, 0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}
	out := append(append(append([]byte(nil), frame[:54]...), rh...), frame[54:]...)
	out[20] = byte(layers.IPProtocolIPv6Routing)
	length := int(out[18])<<8 + int(out[19]) + len(rh)
	out[18], out[19] = byte(length>>8), byte(length)
	return out
}
