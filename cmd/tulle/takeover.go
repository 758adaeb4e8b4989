package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/dataplane"
)

// A takeover in steps, N the new daemon and O the old one:
//
//  1. N asks O to yield. O stops its engine at a batch boundary, so that nothing is in it, and answers.
//  2. N adopts everything from the holder. Packets wait in the kernel meanwhile.
//  3. N says so. O answers and exits, as if it were killed: it leaves everything in place, gossip too.
//  4. N forwards, and takes O's other places: lock, sockets, gossip.
//
// Up to step 3 O goes on as if nothing had been when N says that it cannot, is not ready in time, or dies. Only one of both ever forwards.
// O's answer in step 1 has what it knows of fragmented datagrams: those that wait in it for their first fragment, and the fate of those that N
// gets the rest of.

// readyWithin is how long a daemon that has yielded waits for the new one.
const readyWithin = 500 * time.Millisecond

// A pause of the engine.
type pause struct{ ended, over chan struct{} }

// runEngine runs the engine until ctx ends or it is to pause.
func (f *forwarder) runEngine(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	base, err := control.CountsOf(tapName) // nobody reads or writes yet
	if err != nil {
		slog.Warn("the kernel's count of frames is not known", "error", err)
	}
	f.mu.Lock()
	f.linkBase, f.linkOf = base, f.engine
	f.stop = stop
	if f.paused != nil {
		stop()
	}
	engine := f.engine
	f.mu.Unlock()
	err = engine.Run(ctx)
	f.mu.Lock()
	f.fragments = engine.Left()
	f.mu.Unlock()
	return err
}

// restAndGoOn waits for the end of a pause, and makes another engine for the same TAP.
func (f *forwarder) restAndGoOn(ctx context.Context) error {
	f.mu.Lock()
	p := f.paused
	f.mu.Unlock()
	if p != nil {
		close(p.ended)
		select {
		case <-ctx.Done():
			return nil
		case <-p.over:
		}
	}
	if err := f.tally(); err != nil {
		return err
	}
	return f.attach(f.tap)
}

// pause stops the engine at a batch boundary. From then until resume nobody uses ports and flows.
func (f *forwarder) pause(ctx context.Context) error {
	p := &pause{make(chan struct{}), make(chan struct{})}
	f.mu.Lock()
	if f.paused != nil || f.stop == nil {
		f.mu.Unlock()
		return errors.New("it is starting, or yields to another already")
	}
	f.paused = p
	f.stop()
	f.mu.Unlock()
	f.sweeping.Lock()
	select {
	case <-p.ended:
		return nil
	case <-ctx.Done():
		f.resume()
		return ctx.Err()
	}
}

// resume ends a pause.
func (f *forwarder) resume() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.paused != nil {
		close(f.paused.over)
		f.paused = nil
		f.sweeping.Unlock()
	}
}

// left returns what the engine that ended knew of fragmented datagrams.
func (f *forwarder) left() dataplane.Fragments {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fragments
}

// yieldReport is the answer of a daemon that has yielded.
type yieldReport struct {
	PID       int                 `json:"pid"`
	Fragments dataplane.Fragments `json:"fragments"`
}

// yield makes room for another daemon, for a while.
func (d *daemon) yield(ctx context.Context) (*yieldReport, error) {
	if err := d.forwarder.held.keep(); err != nil {
		return nil, err
	}
	if err := d.forwarder.pause(ctx); err != nil {
		return nil, err
	}
	d.yielding.Lock()
	defer d.yielding.Unlock()
	d.goOn = time.AfterFunc(readyWithin, func() {
		slog.Warn("the daemon that was to take over was not ready in time: this one goes on")
		d.forwarder.resume()
	})
	return &yieldReport{PID: os.Getpid(), Fragments: d.forwarder.left()}, nil
}

// answerYielded ends this process if the other is in time.
func (d *daemon) answerYielded(w http.ResponseWriter, _ *http.Request) {
	d.yielding.Lock()
	defer d.yielding.Unlock()
	if d.goOn == nil || !d.goOn.Stop() {
		http.Error(w, "too late: the old daemon goes on", http.StatusConflict)
		return
	}
	slog.Info("another daemon has taken over")
	json.NewEncoder(w).Encode(yieldReport{PID: os.Getpid()})
	http.NewResponseController(w).Flush()
	os.Exit(0)
}

// goOnNow ends a pause before its time.
func (d *daemon) goOnNow(context.Context) (*yieldReport, error) {
	d.yielding.Lock()
	defer d.yielding.Unlock()
	if d.goOn != nil && d.goOn.Stop() {
		slog.Warn("the daemon that was to take over cannot: this one goes on")
		d.forwarder.resume()
	}
	return &yieldReport{PID: os.Getpid()}, nil
}

// takeOver makes the daemon that runs yield and returns a forwarder of all that it had, which that one uses no more.
func takeOver(ctx context.Context, c *daemonConfig) (*forwarder, error) {
	yielded, err := call[yieldReport](ctx, c.runDir, http.MethodPost, pathYield)
	if err != nil {
		return nil, fmt.Errorf("take over: %w", err)
	}
	f, err := openForwarder(c, yielded.Fragments)
	if err != nil {
		return nil, fmt.Errorf("take over: %w", errors.Join(err, request(ctx, c.runDir, pathGoOn)))
	}
	if err := request(ctx, c.runDir, pathYielded); err != nil {
		return nil, errors.Join(fmt.Errorf("take over: %w", err), f.abandon())
	}
	return f, awaitLock(c.runDir)
}

// awaitLock waits until the daemon that has answered is gone.
func awaitLock(dir string) error {
	file, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	return unix.Flock(int(file.Fd()), unix.LOCK_EX)
}

// request posts to the daemon that serves runDir.
func request(ctx context.Context, runDir, path string) error {
	_, err := call[yieldReport](ctx, runDir, http.MethodPost, path)
	return err
}
