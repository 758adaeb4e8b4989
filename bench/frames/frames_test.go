package frames

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/tulle-net/tulle/bench"
)

func ends(in func(func() error) error) (near, far End) {
	return End{Name: "tulle-fn", Addr: netip.MustParseAddr("10.1.1.9"), In: in}, End{Name: "tulle-ff", Addr: netip.MustParseAddr("10.1.2.9"), In: in}
}

func sysctl(key, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(value), 0o644)
}

// router is a namespace that forwards, and a way to run in it.
func router(t *testing.T) func(func() error) error {
	t.Helper()
	calls, done := make(chan func()), make(chan struct{})
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the namespace
		for f := range calls {
			f()
		}
		close(done)
	}()
	in := func(f func() error) error {
		result := make(chan error)
		calls <- func() { result <- f() }
		return <-result
	}
	t.Cleanup(func() { close(calls); <-done })
	if err := in(func() error { return unix.Unshare(unix.CLONE_NEWNET) }); err != nil {
		t.Fatalf("needs root: %v", err)
	}
	err := in(func() error {
		for key, value := range map[string]string{"ipv4/ip_forward": "1", "ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0", "ipv6/conf/default/disable_ipv6": "1"} {
			if err := sysctl(key, value); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// Over a kernel that forwards, every frame arrives once and exactly as it should, of one flow and of many.
func TestForwarded(t *testing.T) {
	p, err := Open(ends(router(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for trial, s := range []Stream{
		{Count: 1000, Flows: 1, Size: MinSize, Rate: 20_000, Hops: 1},
		{Count: 3000, Flows: 2999, Size: MaxSize, Rate: 20_000, Hops: 1},
	} {
		s.Trial = uint64(trial)
		r, err := p.Run(t.Context(), s)
		if err != nil || r.Exact != s.Count || r.Sent != s.Count || r.Changed != 0 || r.Duplicates != 0 {
			t.Errorf("%+v: %+v, %v: first changed % x", s, r, err, r.FirstBad)
		}
	}
	// One hop too few expected: all differ, by the TTL alone.
	r, err := p.Run(t.Context(), Stream{Trial: 9, Count: 10, Flows: 1, Size: 100, Rate: 1000})
	if err != nil || r.Changed != 10 || r.Lost() != 0 || r.FirstBad[ethernet+8] != firstTTL-1 {
		t.Errorf("%+v, %v", r, err)
	}
}

// Without a way there all are lost, and the run ends all the same.
func TestLost(t *testing.T) {
	in := router(t)
	p, err := Open(ends(in))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := in(func() error { return sysctl("ipv4/ip_forward", "0") }); err != nil {
		t.Fatal(err)
	}
	r, err := p.Run(t.Context(), Stream{Count: 100, Flows: 1, Size: 100, Rate: 10_000})
	if err != nil || r.Sent != 100 || r.Lost() != 100 {
		t.Errorf("%+v, %v", r, err)
	}
}

// What is built is what another decoder takes for right, and each flow has ports of its own.
func TestBuild(t *testing.T) {
	near, far := ends(nil)
	from, to := &tap{End: near, mac: net.HardwareAddr{2, 0, 0, 0, 0, 1}}, &tap{End: far, mac: net.HardwareAddr{2, 0, 0, 0, 0, 2}}
	rapid.Check(t, func(t *rapid.T) {
		s := Stream{Trial: rapid.Uint64().Draw(t, "trial"), Flows: rapid.IntRange(1, MaxFlows).Filter(func(n int) bool { return n%stride != 0 }).Draw(t, "flows"), Size: rapid.IntRange(MinSize, MaxSize).Draw(t, "size"),
			Hops: rapid.IntRange(0, 5).Draw(t, "hops")}
		n := rapid.IntRange(0, 2*MaxFlows).Draw(t, "number")
		b := make([]byte, s.Size)
		s.build(b, n, from, to)
		arrived := rapid.Bool().Draw(t, "arrived")
		if arrived {
			s.expected(b, to, []byte{1, 2})
		}
		packet := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default)
		ip, isIP := packet.NetworkLayer().(*layers.IPv4)
		u, isUDP := packet.TransportLayer().(*layers.UDP)
		if !isIP || !isUDP || packet.ErrorLayer() != nil {
			t.Fatalf("%v", packet)
		}
		ttl := uint8(firstTTL)
		if arrived {
			ttl -= uint8(s.Hops)
		}
		flow := int(u.DstPort-5000)*ports + int(u.SrcPort) - firstPort
		if flow != n*stride%s.Flows || ip.TTL != ttl || !ip.SrcIP.Equal(near.Addr.AsSlice()) || !ip.DstIP.Equal(far.Addr.AsSlice()) {
			t.Fatalf("flow %d, not %d: %v", flow, n*stride%s.Flows, packet)
		}
		if bench.Checksum(b[ethernet:ethernet+ipv4]) != 0 {
			t.Fatal("IP checksum")
		}
		again := make([]byte, len(b)) // serialized by the other with checksums of its own
		u.SetNetworkLayerForChecksum(ip)
		buffer := gopacket.NewSerializeBuffer()
		if err := gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{ComputeChecksums: true, FixLengths: true},
			packet.LinkLayer().(*layers.Ethernet), ip, u, gopacket.Payload(u.Payload)); err != nil {
			t.Fatal(err)
		}
		copy(again, buffer.Bytes())
		if string(again) != string(b) && !(u.Checksum == 0xffff) {
			t.Fatalf("% x\n% x", b, again)
		}
	})
}

// The same frame twice is a duplicate, one of another trial or with a number beyond the last is foreign.
func TestJudge(t *testing.T) {
	near, far := ends(nil)
	from, to := &tap{End: near, mac: net.HardwareAddr{2, 0, 0, 0, 0, 1}}, &tap{End: far, mac: net.HardwareAddr{2, 0, 0, 0, 0, 2}}
	s := Stream{Trial: 5, Count: 3, Flows: 2, Size: 80, Rate: 1, Hops: 2}
	j := &judge{stream: s, from: from, at: to, seen: make([]bool, s.Count), want: make([]byte, s.Size)}
	arrive := func(trial uint64, n int, change func([]byte)) {
		b, of := make([]byte, s.Size), s
		of.Trial = trial
		of.build(b, n, from, to)
		of.expected(b, to, []byte{7, 7})
		if change != nil {
			change(b)
		}
		j.take(b)
	}
	arrive(5, 0, nil)
	arrive(5, 0, nil)
	arrive(4, 1, nil)
	arrive(5, 3, nil)
	arrive(5, 2, func(b []byte) { b[len(b)-1] ^= 1 })
	j.take(make([]byte, 10))
	r := j.result
	r.FirstBad = nil
	if want := (Result{Exact: 1, Duplicates: 1, Changed: 1, Foreign: 3}); !reflect.DeepEqual(r, want) {
		t.Errorf("%+v, want %+v", r, want)
	}
}

func TestStreamErrors(t *testing.T) {
	good := Stream{Count: 1, Flows: 1, Size: MinSize, Rate: 1}
	if err := good.check(); err != nil {
		t.Error(err)
	}
	for _, change := range []func(*Stream){
		func(s *Stream) { s.Flows = 0 }, func(s *Stream) { s.Flows = MaxFlows + 1 }, func(s *Stream) { s.Flows = 2 * stride }, func(s *Stream) { s.Size-- }, func(s *Stream) { s.Size = MaxSize + 1 },
		func(s *Stream) { s.Count = 0 }, func(s *Stream) { s.Rate = 0 }, func(s *Stream) { s.Hops = firstTTL },
	} {
		s := good
		change(&s)
		if s.check() == nil {
			t.Errorf("%+v: no error", s)
		}
	}
}
