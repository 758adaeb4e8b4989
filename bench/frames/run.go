package frames

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// quiet is how long nothing has to come, after the last was sent, for the rest to be lost.
const quiet = 300 * time.Millisecond

// Run sends a stream and judges what arrives. Loss is no error: an error means that ctx ended or that a TAP failed.
func (p *Pair) Run(ctx context.Context, s Stream) (Result, error) {
	if err := s.check(); err != nil {
		return Result{}, err
	}
	j := &judge{stream: s, from: p.near, at: p.far, seen: make([]bool, s.Count), want: make([]byte, s.Size)}
	sent, judged := make(chan struct{}), make(chan error, 1)
	go func() { judged <- j.run(sent) }()
	n, elapsed, err := p.near.send(ctx, s, p.far)
	close(sent)
	err = errors.Join(err, <-judged)
	j.result.Sent, j.result.Elapsed = n, elapsed
	return j.result, err
}

// send writes frames at their times.
func (t *tap) send(ctx context.Context, s Stream, to *tap) (n int, elapsed time.Duration, err error) {
	b, begin := make([]byte, s.Size), time.Now()
	for n < s.Count && ctx.Err() == nil {
		due := min(s.Count, int(time.Since(begin).Seconds()*s.Rate)+1)
		if due == n {
			time.Sleep(100 * time.Microsecond)
			continue
		}
		for ; n < due; n++ {
			s.build(b, n, t, to)
			if _, err := t.device.Write(b); err != nil {
				return n, time.Since(begin), fmt.Errorf("frames: write to %s: %w", t.Name, err)
			}
		}
	}
	return n, time.Since(begin), ctx.Err()
}

// judge reads from the far TAP.
type judge struct {
	stream   Stream
	from, at *tap
	seen     []bool
	want     []byte
	result   Result
}

// run reads until everything has come, or nothing does any more after sent was closed.
func (j *judge) run(sent <-chan struct{}) error {
	b, done := make([]byte, 1<<16), false
	for j.result.Exact+j.result.Changed < j.stream.Count {
		if err := j.at.file.SetReadDeadline(time.Now().Add(quiet)); err != nil {
			return err
		}
		n, err := j.at.device.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if done {
				return nil
			}
			select {
			case <-sent:
				done = true
			default:
			}
			continue
		}
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("frames: read from %s: %w", j.at.Name, err)
		}
		j.take(b[:n])
	}
	return nil
}

func (j *judge) take(b []byte) {
	if len(b) < MinSize || binary.BigEndian.Uint16(b[12:]) != 0x0800 || binary.BigEndian.Uint64(b[headers:]) != j.stream.Trial {
		j.result.Foreign++
		return
	}
	n := binary.BigEndian.Uint64(b[headers+8:])
	if n >= uint64(len(j.seen)) {
		j.result.Foreign++
		return
	}
	if j.seen[n] {
		j.result.Duplicates++
		return
	}
	j.seen[n] = true
	j.stream.build(j.want, int(n), j.from, j.at)
	j.stream.expected(j.want, j.at, b[ethernet+4:ethernet+6])
	if bytes.Equal(b, j.want) {
		j.result.Exact++
		return
	}
	j.result.Changed++
	if j.result.FirstBad == nil {
		j.result.FirstBad = bytes.Clone(b)
	}
}
