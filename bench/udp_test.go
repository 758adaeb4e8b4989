package bench

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func selfEnds(t *testing.T, six bool) Ends {
	t.Helper()
	cpus, err := CPUs()
	if err != nil {
		t.Fatal(err)
	}
	addr := loopback
	if six {
		addr = loopback6
	}
	return Ends{Client: Place{Addr: addr, CPU: cpus[0]}, Server: Place{Addr: addr, CPU: cpus[len(cpus)-1]}}
}

func openUDP(t *testing.T, ends Ends, flows int) *UDP {
	t.Helper()
	u, err := OpenUDP(ends, flows)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := u.Close(); err != nil {
			t.Error(err)
		}
	})
	return u
}

// What is sent slowly over loopback arrives, all of it and once.
func TestStream(t *testing.T) {
	for _, s := range []Stream{
		{Rate: 5000, Duration: 200 * time.Millisecond},
		{Rate: 5000, Duration: 200 * time.Millisecond, Flows: 300},
		{Rate: 1000, Duration: 100 * time.Millisecond, Sizes: []int{9000}},
		{Rate: 1000, Duration: 100 * time.Millisecond, Sizes: []int{65507}},
		{Rate: 12000, Duration: 100 * time.Millisecond, Sizes: IMIX, Flows: 3},
		{Rate: 20000, Duration: 100 * time.Millisecond, Segments: 16},
		{Rate: 20000, Duration: 100 * time.Millisecond, Segments: 7, Sizes: []int{100}, Flows: 5},
		{Rate: 2000, Duration: 100 * time.Millisecond, Latency: true, Flows: 10},
		{Rate: 2000, Duration: 100 * time.Millisecond, Latency: true, Echo: true},
	} {
		s.All = true
		for _, six := range []bool{false, true} {
			t.Run(fmt.Sprintf("%+v six=%t", s, six), func(t *testing.T) {
				r, err := openUDP(t, selfEnds(t, six), max(s.Flows, 1)).Run(deadline(t, 10*time.Second), s)
				if err != nil {
					t.Fatal(err)
				}
				want := uint64(s.Rate * s.Duration.Seconds())
				if r.Sent != want || r.Received != want || r.Duplicates+r.Reordered+r.Foreign+r.SocketDrops != 0 || r.LossRatio() != 0 {
					t.Errorf("got %+v, want %d", r, want)
				}
				if s.Latency && (r.Latency.Count != int64(want) || r.Latency.P50 <= 0 || r.Latency.P50 > r.Latency.Max) {
					t.Errorf("latency %+v", r.Latency)
				}
				if r.Elapsed < s.Duration*9/10 {
					t.Errorf("sent in %v, want about %v", r.Elapsed, s.Duration)
				}
			})
		}
	}
}

func TestFlood(t *testing.T) {
	u := openUDP(t, selfEnds(t, false), 4)
	for _, s := range []Stream{{}, {Flows: 4}, {Segments: 16}, {Sizes: IMIX}} {
		s.Duration = 100 * time.Millisecond
		r, err := u.Run(deadline(t, 10*time.Second), s)
		if err != nil || r.Sent < 1000 || r.Received+r.SocketDrops != r.Sent || r.Foreign+r.Duplicates != 0 {
			t.Errorf("%+v: %+v, %v", s, r, err)
		}
		t.Logf("%+v: %.0f sent, %.0f received a second, CPU %v", s, r.SentRate(), r.ReceivedRate(), r.CPU.Busy())
	}
}

// A trial is the generator's if its socket lost what the path had delivered, or if the delay is the sender's own lateness.
func TestTrialOfTheGenerator(t *testing.T) {
	delayed := func(late, delay time.Duration) UDPResult {
		return UDPResult{Sent: 5, Counts: Counts{Received: 5}, Latency: Latency{Count: 5, P50: delay}, Late: Latency{Count: 5, P50: late}}
	}
	for i, test := range []struct {
		r    UDPResult
		want bool
	}{
		{UDPResult{Sent: 5, Counts: Counts{Received: 5}}, false},
		{UDPResult{Sent: 10, Counts: Counts{Received: 5}, SocketDrops: 2}, false},
		{UDPResult{Sent: 10, Counts: Counts{Received: 5}, SocketDrops: 3}, true},
		{delayed(50, 100), false},
		{delayed(95, 100), true},
	} {
		if got := test.r.GeneratorBound(); got != test.want {
			t.Errorf("%d: %t", i, got)
		}
	}
}

// A schedule that no sender can keep makes the delays its own, and the trial says so.
func TestLateSender(t *testing.T) {
	u, err := OpenUDP(selfEnds(t, false), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	r, err := u.Run(t.Context(), Stream{Rate: 50e6, Duration: 2 * time.Millisecond, Latency: true})
	if err != nil {
		t.Fatal(err)
	}
	if r.Late.Count != int64(r.Sent) || !r.GeneratorBound() {
		t.Errorf("%+v", r)
	}
}

// A socket that has room for hardly anything loses what loopback brings it, and the trial says that it was the socket.
func TestFullSocket(t *testing.T) {
	u, err := OpenUDP(selfEnds(t, false), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if err := unix.SetsockoptInt(u.far.(*localUDP).fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
		t.Fatal(err)
	}
	for range 50 { // until the sink was slower than the sender for once
		r, err := u.Run(t.Context(), Stream{Duration: 20 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		if r.GeneratorBound() {
			return
		}
	}
	t.Error("nothing was lost in a full socket")
}
