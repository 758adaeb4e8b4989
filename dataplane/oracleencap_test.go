package dataplane

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// TestOracleEncap is TestOracle for what leaves: the same frames go to the engine and out of a kernel VXLAN device. What the engine sends is what
// the device sends, to the byte behind the inner MAC addresses, under the same TOS or traffic class. What it does not send has a verdict; the
// device, which looks at little, sends most of it.
func TestOracleEncap(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 5))
	k := newKernelVXLAN(t)
	k.awaitCarrier(t)
	r := newRig(t, func(c *Config) { c.Join = packet.Joining{} })
	seeds := [][]byte{
		udpFrame(t, macA, macB, "10.0.1.9", "10.0.2.9", 64), udpFrame(t, macA, macB, podA6, podB6, 64), tcpSuper(t, "10.0.1.9", "10.0.2.9", 400, 0).data,
		tcpSuper(t, podA6, podB6, 400, 0).data, echoFrame(t, macA, macB, "10.0.1.9", "10.0.2.9", false), echoFrame(t, macA, macB, podA6, podB6, false),
	}
	same, explained := 0, map[packet.Verdict]int{}
	for range *oracleFrames {
		inner := scramble(rng, seeds[rng.IntN(len(seeds))])
		before := r.w.snapshot().Verdicts
		r.send(TAP, memFrame{data: inner})
		r.tap().taken()
		sent := append(r.underlay().taken(), r.underlay6().taken()...)
		kernel, ok := k.transmit(t, inner, inner[12] == 0x86)
		switch {
		case len(sent) == 0 && isFragment(inner): // it waits for its first, or is one that is dropped
		case len(sent) == 0:
			explained[verdictSince(before, r.w.snapshot().Verdicts)]++
		case !ok || len(sent) > 1 && !isFragment(inner) || // others may have waited for it
			!bytes.Equal(sent[0].data[:8], kernel.data[:8]) || !bytes.Equal(sent[0].data[8+12:], withoutPadding(kernel.data[8:])[12:]) || kernelsTOS(sent[0].tos) != kernel.tos:
			t.Fatalf("%x\n  engine %#x %x\n  kernel %#x %x", inner, sent[0].tos, sent[0].data, kernel.tos, kernel.data)
		default:
			same++
		}
		r.now.Add(1e6)
	}
	r.now.Add(int64(time.Minute))
	r.w.begin() // fragments that still wait
	t.Logf("%d the same, not sent: %v", same, explained)
	if explained[packet.None] > 0 || same < *oracleFrames/4 {
		t.Errorf("%d without a verdict, %d the same", explained[packet.None], same)
	}
}

// kernelsTOS is what the kernel's device makes of the TOS that the engine gives. RFC 6040 section 4.1 copies a congestion mark; the kernel is
// older and turns it into ECT(0) (INET_ECN_encapsulate, include/net/inet_ecn.h).
func kernelsTOS(tos uint8) uint8 {
	if tos == packet.ECNCE {
		return packet.ECNECT0
	}
	return tos
}

// scramble changes the TOS byte of a frame, and of one among three some bytes more, and cuts some off.
func scramble(rng *rand.Rand, frame []byte) []byte {
	b := bytes.Clone(frame)
	b[14+1] = byte(rng.IntN(256))
	if rng.IntN(3) == 0 {
		b[12+rng.IntN(min(len(b), 60)-12)] = byte(rng.Uint32())
	}
	if rng.IntN(10) == 0 {
		b = b[:14+rng.IntN(len(b)-14)]
	}
	if len(b) >= 34 && b[12] == 8 && rng.IntN(20) > 0 {
		fixIPChecksum(b)
	}
	return b
}

// verdictSince is the one that was counted; Delivered is an answer's, unless it is alone.
func verdictSince(before, after [packet.NumVerdicts]uint64) (found packet.Verdict) {
	for v := range after {
		if after[v] != before[v] && (found == packet.None || found == packet.Delivered) {
			found = packet.Verdict(v)
		}
	}
	return found
}

// awaitCarrier is over when both devices send: the kernel takes its time with a new link's carrier, and drops what it is given before.
func (k *kernelVXLAN) awaitCarrier(t *testing.T) {
	t.Helper()
	end := encapSentinel(t)
	for v6, device := range k.devices {
		for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
			if time.Since(start) > 10*time.Second {
				t.Fatalf("the VXLAN device over IPv6 %t sends nothing", v6)
			}
			if _, err := unix.Write(device, end); err != nil {
				t.Fatal(err)
			}
			if n, _, err := unix.Recvfrom(k.wire, k.buf, unix.MSG_DONTWAIT); err == nil && bytes.HasSuffix(k.buf[:n], []byte("sentinel")) {
				break
			}
		}
	}
	for n := 1; n > 0; { // those that came late
		n, _, _ = unix.Recvfrom(k.wire, k.buf, unix.MSG_DONTWAIT)
	}
}

// encapSentinel is a frame that comes through for sure.
func encapSentinel(t *testing.T) []byte {
	end := udpFrame(t, macA, macB, "10.0.1.9", "10.0.2.9", 20)
	copy(end[len(end)-8:], "sentinel")
	return end
}

// transmit lets node a's VXLAN device send a frame to node b, and returns the datagram.
func (k *kernelVXLAN) transmit(t *testing.T, inner []byte, v6 bool) (found memFrame, ok bool) {
	t.Helper()
	for _, b := range [][]byte{inner, encapSentinel(t)} {
		if _, err := unix.Write(k.devices[v6], b); err != nil {
			t.Fatalf("sending by the VXLAN device: %v", err)
		}
	}
	for {
		n, err := unix.Read(k.wire, k.buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			t.Fatalf("the wire: %v, of %x", err, inner)
		}
		m, datagram := datagramOf(bytes.Clone(k.buf[:n]))
		switch {
		case !datagram, m.data[8]&1 == 1: // multicast of the device's own
		case bytes.HasSuffix(m.data, []byte("sentinel")):
			return found, ok
		default:
			found, ok = m, true
		}
	}
}
