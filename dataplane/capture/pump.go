package capture

import (
	"context"
	"errors"
	"io"
	"net"
	"time"
)

const (
	// idleWait is how long records wait in the rings at most. Half full ones are not waited for.
	idleWait = 10 * time.Millisecond
	// statsInterval is the time between two reports of all counters. A loss is reported at once.
	statsInterval = time.Second
	// writeChunk bounds what is written at once, so that a worker gets its room back soon.
	writeChunk = 256 << 10
)

// A pump carries the records of a session to its reader.
type pump struct {
	session *Session
	to      io.Writer
	buf     []byte
	told    []Statistics // as of the last report
	next    time.Time    // of the regular report
}

// Run carries records to the reader until ctx ends or a write fails. Then quiesce is called, after which no worker may be in Observe,
// what is left is written, and the stream ends with the reason that ctx was given, see context.Cause.
func (s *Session) Run(ctx context.Context, to io.Writer, quiesce func()) error {
	if s.wire != nil {
		defer s.wire.close()
	}
	p := &pump{session: s, to: to, told: make([]Statistics, len(s.interfaces)), next: time.Now().Add(statsInterval)}
	err := p.follow(ctx)
	quiesce()
	if err != nil {
		return err
	}
	return p.finish(context.Cause(ctx))
}

func (p *pump) follow(ctx context.Context) error {
	idle := time.NewTimer(idleWait)
	defer idle.Stop()
	for {
		_, more, err := p.move()
		if err == nil {
			err = p.report(false)
		}
		if err != nil {
			return err
		}
		if more && ctx.Err() == nil {
			continue
		}
		idle.Reset(idleWait)
		select {
		case <-ctx.Done():
			return nil
		case <-p.session.wake:
		case <-idle.C:
		}
	}
}

// move writes what is there, once around. There is more at once iff a ring gave as much as is taken at a time: what trickles in
// is left to gather, since each look at it and each write takes time from the packet path.
func (p *pump) move() (moved, more bool, err error) {
	for i := range p.session.producers {
		r := &p.session.producers[i].ring
		chunk := r.readable(writeChunk)
		if len(chunk) == 0 {
			continue
		}
		moved, more = true, more || len(chunk) > writeChunk/2
		if _, err := p.to.Write(chunk); err != nil {
			return moved, more, err
		}
		r.consume(len(chunk))
	}
	if w := p.session.wire; w != nil {
		if records := net.Buffers(w.read()); records != nil {
			_, err := records.WriteTo(p.to)
			w.release()
			return true, true, err
		}
	}
	return moved, more, nil
}

// report writes the counters when it is time, and those of which more was missed.
func (p *pump) report(all bool) error {
	now := time.Now()
	if w := p.session.wire; w != nil {
		w.count()
	}
	if !now.Before(p.next) {
		all = true
		p.next = now.Add(statsInterval)
	}
	p.buf = p.buf[:0]
	for i := range p.told {
		now := p.session.Statistics(i)
		if !all && now.Missed == p.told[i].Missed {
			continue
		}
		p.told[i] = now
		p.buf = appendRecord(p.buf, &Record{Interface: i, Time: time.Now(), Serial: now.Received, FlowID: now.Missed}, kindStats, nil)
	}
	if len(p.buf) == 0 {
		return nil
	}
	_, err := p.to.Write(p.buf)
	return err
}

// finish writes what is left and the end. What the kernel's ring holds in a block that is not full comes within blockTimeout.
func (p *pump) finish(why error) error {
	p.session.Flush()
	if p.session.wire != nil {
		time.Sleep(4 * blockTimeout * time.Millisecond)
	}
	for until := time.Now().Add(time.Second); time.Now().Before(until); {
		moved, _, err := p.move()
		if err != nil {
			return err
		}
		if !moved {
			break
		}
	}
	if err := p.report(true); err != nil {
		return err
	}
	if why == nil {
		why = errors.New("ended")
	}
	_, err := p.to.Write(appendRecord(nil, &Record{Time: time.Now()}, kindEnd, []byte(why.Error())))
	return err
}
