package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tulle-net/tulle/control/netconf"
	"github.com/tulle-net/tulle/dataplane/capture"
	"github.com/tulle-net/tulle/dataplane/packet"
)

const (
	// maxCaptures bounds the captures at a time: each has rings of 8 MiB for each worker, and of 16 MiB for the wire.
	maxCaptures = 4
	// captureProtocol is what the connection is upgraded to: a captureHello as one line of JSON, and then capture's stream. The reader
	// ends it by closing its side.
	captureProtocol = "tulle-capture"
	// captureDrain bounds how long an ended capture waits for its reader.
	captureDrain = 2 * time.Second
)

// A captureHello begins a capture's stream.
type captureHello struct {
	SchemaVersion int                 `json:"schemaVersion"`
	Version       string              `json:"version"`
	Node          string              `json:"node"`
	Interfaces    []capture.Interface `json:"interfaces"`
	Verdicts      []string            `json:"verdicts"` // names, by number
	Tunnel        capture.Tunnel      `json:"tunnel"`
	SnapLen       int                 `json:"snapLen"`
}

// captures are those under way. The zero value is ready.
type captures struct {
	mu      sync.Mutex
	running int
	ended   bool
	group   sync.WaitGroup
}

// begin takes a place; end waits for all to be given back, after which there is none.
func (c *captures) begin() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.ended:
		return errors.New("the daemon ends")
	case c.running == maxCaptures:
		return fmt.Errorf("%d captures run already: end one of them", maxCaptures)
	}
	c.running++
	c.group.Add(1)
	return nil
}

func (c *captures) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running--
	c.group.Done()
}

func (c *captures) end() {
	c.mu.Lock()
	c.ended = true
	c.mu.Unlock()
	c.group.Wait()
}

// parseCapture reads what is to be captured from the parameters of a request, in which the command line is carried as it is.
func parseCapture(q url.Values) (c capture.Config, err error) {
	if c.Stages, err = capture.CheckStages(strings.Split(q.Get("stage"), ",")); err != nil {
		return c, fmt.Errorf("--stage: %w", err)
	}
	if c.Filter, err = capture.ParseFilter(q.Get("filter")); err != nil {
		return c, fmt.Errorf("--filter: %w", err)
	}
	if c.Inner, err = capture.ParseFilter(q.Get("inner")); err != nil {
		return c, fmt.Errorf("--inner: %w", err)
	}
	if s := q.Get("snaplen"); s != "" {
		if c.SnapLen, err = strconv.Atoi(s); err != nil || c.SnapLen < 0 || c.SnapLen > capture.MaxSnapLen {
			return c, fmt.Errorf("--snaplen %s: out of range (allowed: 0 to %d; 0 for whole packets)", s, capture.MaxSnapLen)
		}
	}
	return c, nil
}

// newCapture opens a session for the request.
func (d *daemon) newCapture(c capture.Config) (*capture.Session, error) {
	f := d.forwarder
	c.Workers, c.TAPName, c.L3 = d.config.workers, tapName, d.config.device.L3()
	c.Start = time.Now().Add(-f.now())
	c.Tunnel = capture.Tunnel{Port: d.config.port, VXLAN: d.config.conf.Backend.Type == netconf.TypeVXLAN}
	c.Local = []netip.Addr{d.config.link.Addr, d.config.link.Addr6}
	c.Source = f.sourcePort
	s := capture.NewSession(c)
	for _, stage := range c.Stages {
		if stage == capture.Wire {
			return s, openWire(s, d.config.link.Name)
		}
	}
	return s, nil
}

func openWire(s *capture.Session, name string) error {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return fmt.Errorf("underlay: %w", err)
	}
	return s.OpenWire(name, link.Index)
}

// sourcePort is the port that a worker sends a frame from, 0 when it has no underlay of the frame's family.
func (f *forwarder) sourcePort(worker int, frame *packet.Frame) uint16 {
	of := f.underlays
	if frame.Remote.Addr().Is6() {
		of = f.underlays6
	}
	if worker >= len(of) {
		return 0
	}
	return of[worker].SourcePort(frame)
}

// answerCapture runs a capture on the request's connection until one of its ends, or the daemon, has enough.
func (d *daemon) answerCapture(w http.ResponseWriter, r *http.Request) {
	config, err := parseCapture(r.URL.Query())
	if err == nil && r.Header.Get("Upgrade") != captureProtocol {
		err = fmt.Errorf("the connection must be upgraded to %s", captureProtocol)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if err := d.captures.begin(); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer d.captures.leave()
	s, err := d.newCapture(config)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		s.Close()
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	d.runCapture(r.Context(), s, conn, config.SnapLen)
}

func (d *daemon) runCapture(daemon context.Context, s *capture.Session, conn net.Conn, snapLen int) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(daemon))
	defer cancel(nil)
	end := func(why string) {
		cancel(errors.New(why))
		conn.SetWriteDeadline(time.Now().Add(captureDrain))
	}
	defer context.AfterFunc(daemon, func() { end("the daemon ended") })()
	go func() { // ends with the connection
		conn.Read(make([]byte, 1))
		end("")
	}()
	yieldThread()
	stop := d.forwarder.observe(s.Observe)
	if err := d.greet(conn, s, snapLen); err != nil {
		cancel(err)
	}
	s.Run(ctx, conn, func() { // an error says that the reader is gone
		stop()
		waiting, done := context.WithTimeout(context.WithoutCancel(daemon), apiTimeout)
		defer done()
		d.forwarder.counters(waiting) // a barrier: no worker is in the observer after
	})
}

// greet answers the request and says what the stream is of.
func (d *daemon) greet(conn net.Conn, s *capture.Session, snapLen int) error {
	hello := captureHello{
		SchemaVersion: schemaVersion, Version: versionString(), Node: d.config.self.Name, Interfaces: s.Interfaces(), SnapLen: snapLen,
		Tunnel: capture.Tunnel{Port: d.config.port, VXLAN: d.config.conf.Backend.Type == netconf.TypeVXLAN},
	}
	for v := range packet.Verdict(packet.NumVerdicts) {
		hello.Verdicts = append(hello.Verdicts, v.String())
	}
	if _, err := fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", captureProtocol); err != nil {
		return err
	}
	return json.NewEncoder(conn).Encode(hello)
}
