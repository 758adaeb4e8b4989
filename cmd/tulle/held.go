package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/conntrack"
	"github.com/tulle-net/tulle/dataplane/holder"
)

// Values of --holder.
const (
	holderAuto = "auto"
	holderOff  = "off"
)

// holderRetry is waited between two looks for a holder.
const holderRetry = time.Second

// heldVersion is that of heldMeta.
const heldVersion = 1

// heldMeta says what the descriptors of a holder's set are.
type heldMeta struct {
	Version int             `json:"version"`
	Parts   []heldPart      `json:"parts"` // in the order of the descriptors
	State   json.RawMessage `json:"state,omitempty"`
}

// A heldPart is some descriptors that are adopted together or not at all.
type heldPart struct {
	Name  string `json:"name"`
	Fit   string `json:"fit"` // the configuration that they fit, in words
	Files int    `json:"files"`
}

// A part is a heldPart with its descriptors.
type part struct {
	name, fit string
	files     []int
}

// A held is the daemon's side of the holder: what the daemon before left there, and what this one gives it. Its methods are safe for
// concurrent use, but for those that take over, which come first.
type held struct {
	path string        // of the holder's socket; "" with --holder off
	wake chan struct{} // room for one

	// parts are the daemon's own, with copies of the descriptors; guarded by what they are of.
	parts func() []part

	inherited map[string]part // not adopted yet; valid until the first keep
	lastState json.RawMessage // of the daemon before, nil if there was none

	sending sync.Mutex // one keep at a time
	mu      sync.Mutex // guards the rest
	state   json.RawMessage
	report  holderReport
}

// A holderReport says what outlives the daemon, and what this one has from the one before.
type holderReport struct {
	Keeps      int                `json:"keeps"`                // descriptors that a holder has copies of
	Adopted    []string           `json:"adopted"`              // parts of the daemon before
	NotAdopted map[string]string  `json:"notAdopted,omitempty"` // of the others, why
	Problem    string             `json:"problem,omitempty"`    // why nothing outlives the daemon; empty if it does
	Flows      conntrack.Adoption `json:"flows"`                // of these
}

func newHeld(c *daemonConfig, parts func() []part) *held {
	h := &held{wake: make(chan struct{}, 1), parts: parts, report: holderReport{Adopted: []string{}, NotAdopted: map[string]string{}}}
	if h.report.Problem = "--holder off"; c.holder != holderOff {
		h.path, h.report.Problem = filepath.Join(c.runDir, holderSocket), "no holder answers"
	}
	return h
}

// take gets what the daemon before left. Without a holder, or with nothing in it, that is nothing.
func (h *held) take() {
	if h.path == "" {
		return
	}
	set, err := h.ask(func(c *holder.Client) (holder.Set, error) { return c.Take() })
	if errors.Is(err, holder.ErrEmpty) || noHolder(err) {
		return
	}
	if err != nil {
		slog.Error("nothing is adopted", "error", err)
		return
	}
	if err := h.sort(set); err != nil {
		// Of another version, say. settle lets the holder close it: with it a port and a name are taken.
		set.Close()
		slog.Error("nothing is adopted", "error", err)
		h.note(func(r *holderReport) { r.NotAdopted["all"] = err.Error() })
	}
}

func noHolder(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

// sort finds the parts of a set.
func (h *held) sort(set holder.Set) error {
	var meta heldMeta
	if err := json.Unmarshal(set.Meta, &meta); err != nil {
		return fmt.Errorf("what the holder has: %w", err)
	}
	if meta.Version != heldVersion {
		return fmt.Errorf("what the holder has is of version %d (this one: %d)", meta.Version, heldVersion)
	}
	parts, files := map[string]part{}, set.Files
	for _, p := range meta.Parts {
		if p.Files < 0 || p.Files > len(files) {
			return fmt.Errorf("what the holder has: %d descriptors for %s, %d are left", p.Files, p.Name, len(files))
		}
		if _, twice := parts[p.Name]; twice {
			return fmt.Errorf("what the holder has: %s twice", p.Name)
		}
		parts[p.Name], files = part{p.Name, p.Fit, files[:p.Files]}, files[p.Files:]
	}
	if len(files) > 0 {
		return fmt.Errorf("what the holder has: %d descriptors of nothing", len(files))
	}
	h.inherited, h.lastState = parts, meta.State
	h.state = meta.State // until there is another: this daemon may be killed too
	return nil
}

// names lists the parts that begin with prefix, in order.
func (h *held) names(prefix string) (names []string) {
	for _, name := range slices.Sorted(maps.Keys(h.inherited)) {
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	return names
}

// adopt hands the descriptors of a part to f, which owns them unless it fails, and says whether it took them.
func (h *held) adopt(name, fit string, f func(files []int) error) bool {
	p, ok := h.inherited[name]
	if !ok {
		return false
	}
	delete(h.inherited, name)
	err := fmt.Errorf("held: %s; configured: %s", p.fit, fit)
	if p.fit == fit {
		err = f(p.files)
	}
	if err != nil {
		h.discard(p, err.Error())
		return false
	}
	h.note(func(r *holderReport) { r.Adopted = append(r.Adopted, name) })
	return true
}

// adoptState hands the state that the daemon before left to f.
func (h *held) adoptState(f func(json.RawMessage) error) {
	if h.lastState == nil {
		return
	}
	if err := f(h.lastState); err != nil {
		h.discard(part{name: partState}, err.Error())
		return
	}
	h.note(func(r *holderReport) { r.Adopted = append(r.Adopted, partState) })
}

// discard closes a part's descriptors.
func (h *held) discard(p part, why string) {
	slog.Warn("not adopted from the daemon before", "what", p.name, "why", why)
	(&holder.Set{Files: p.files}).Close()
	h.note(func(r *holderReport) { r.NotAdopted[p.name] = why })
}

// whole says what was not adopted.
func (h *held) whole() error {
	r := h.reported()
	for name, why := range r.NotAdopted {
		return fmt.Errorf("%s cannot be taken over: %s", name, why)
	}
	for name := range h.inherited {
		return fmt.Errorf("this configuration has no use for %s", name)
	}
	if !slices.Contains(r.Adopted, partTAP) {
		return errors.New("the holder has no TAP")
	}
	return nil
}

// settle lets the holder close what was not adopted: a port or a name is free only then.
func (h *held) settle() {
	for _, p := range h.inherited {
		h.discard(p, "this configuration has no use for it")
	}
	h.inherited = nil
	if len(h.reported().NotAdopted) == 0 {
		return
	}
	if err := h.keep(); err != nil {
		slog.Error("the holder keeps what was not adopted", "error", err)
	}
}

// keep gives the holder what there is now in place of what it has.
func (h *held) keep() error {
	if h.path == "" {
		return nil
	}
	h.sending.Lock()
	defer h.sending.Unlock()
	var set holder.Set
	defer set.Close()
	meta := heldMeta{Version: heldVersion}
	for _, p := range h.parts() {
		meta.Parts = append(meta.Parts, heldPart{p.name, p.fit, len(p.files)})
		set.Files = append(set.Files, p.files...)
	}
	h.mu.Lock()
	meta.State = h.state
	h.mu.Unlock()
	var err error
	if set.Meta, err = json.Marshal(meta); err != nil {
		return err
	}
	if len(set.Meta) > holder.MaxMeta {
		slog.Warn("the node's state is too large for the holder: after a kill it is forwarded again once the nodes are found", "bytes", len(set.Meta))
		meta.State = nil
		if set.Meta, err = json.Marshal(meta); err != nil {
			return err
		}
	}
	_, err = h.ask(func(c *holder.Client) (holder.Set, error) { return holder.Set{}, c.Keep(set) })
	h.note(func(r *holderReport) {
		if r.Keeps, r.Problem = len(set.Files), ""; err != nil {
			r.Keeps, r.Problem = 0, problemOf(err)
		}
	})
	return err
}

func problemOf(err error) string {
	if noHolder(err) {
		return "no holder answers"
	}
	return err.Error()
}

// drop makes the holder let go of everything.
func (h *held) drop() error {
	if h.path == "" {
		return nil
	}
	_, err := h.ask(func(c *holder.Client) (holder.Set, error) { return holder.Set{}, c.Drop() })
	if noHolder(err) {
		return nil
	}
	return err
}

func (h *held) ask(f func(*holder.Client) (holder.Set, error)) (holder.Set, error) {
	c, err := holder.Dial(h.path)
	if err != nil {
		return holder.Set{}, err
	}
	defer c.Close()
	return f(c)
}

// changed makes run give the holder what there is now.
func (h *held) changed() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// setState makes state what the next daemon begins with.
func (h *held) setState(state json.RawMessage) {
	h.mu.Lock()
	h.state = state
	h.mu.Unlock()
	h.changed()
}

// run gives the holder what changes, and a holder that comes, again or for the first time, all there is.
func (h *held) run(ctx context.Context) error {
	if h.path == "" {
		<-ctx.Done()
		return nil
	}
	for ctx.Err() == nil {
		if watch, err := holder.Dial(h.path); err == nil {
			h.serve(ctx, watch)
		} else {
			h.note(func(r *holderReport) { r.Keeps, r.Problem = 0, problemOf(err) })
		}
		select {
		case <-ctx.Done():
		case <-time.After(holderRetry):
		}
	}
	return nil
}

// serve is run for one holder, as long as that lives.
func (h *held) serve(ctx context.Context, watch *holder.Client) {
	gone := make(chan struct{})
	go func() { watch.Lost(); close(gone) }()
	defer func() { watch.Close(); <-gone }()
	for {
		if err := h.keep(); err != nil {
			slog.Error("the holder keeps nothing new", "error", err)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-gone:
			slog.Warn("the holder is gone: nothing outlives a kill of this daemon until one comes")
			return
		case <-h.wake:
		}
	}
}

func (h *held) note(f func(*holderReport)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(&h.report)
}

func (h *held) reported() holderReport {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.report
	r.Adopted, r.NotAdopted = append([]string{}, r.Adopted...), maps.Clone(r.NotAdopted)
	return r
}

// copies duplicates descriptors, for those who may close theirs meanwhile. One that cannot be duplicated is left out, with all others:
// half a part is none.
func copies(files []int) []int {
	var all []int
	for _, fd := range files {
		c, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			slog.Error("a descriptor is not kept", "error", err)
			(&holder.Set{Files: all}).Close()
			return nil
		}
		all = append(all, c)
	}
	return all
}
