package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/control/cniapi"
	"github.com/tulle-net/tulle/dataplane/holder"
)

// The local API: JSON over HTTP on the unix socket RUN_DIR/tulle.sock, for root and the daemon's own user.
const (
	socketName   = "tulle.sock"
	lockName     = "tulle.lock"
	apiTimeout   = 5 * time.Second
	pathStatus   = "/v1/status"
	pathRoutes   = "/v1/routes"
	pathPeers    = "/v1/peers"
	pathFlows    = "/v1/flows"
	pathTrace    = "/v1/trace"
	pathPing     = "/v1/ping"
	pathCapture  = "/v1/capture"
	pathSubnets  = "/v1/subnets"
	pathForget   = "/v1/forget"
	pathLeave    = "/v1/leave"
	pathKeys     = "/v1/keys"
	pathRotate   = "/v1/keys/rotate"
	pathExport   = "/v1/keys/export"
	pathYield    = "/v1/takeover"
	pathYielded  = "/v1/takeover/ready"
	pathGoOn     = "/v1/takeover/failed"
	maxSocketLen = 107 // sun_path without the terminating zero
)

// lockRunDir makes the run directory and takes its lock, which says that one daemon serves it.
func lockRunDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("run directory %s: another daemon uses it; stop that one or give another --run-dir", dir)
	}
	return f, nil
}

// An apiServer answers the other commands.
type apiServer struct {
	listener *net.UnixListener
	server   *http.Server
	captures *captures
}

func listenAPI(d *daemon) (*apiServer, error) {
	path := filepath.Join(d.config.runDir, socketName)
	if len(path) > maxSocketLen {
		return nil, fmt.Errorf("socket %s: path longer than %d bytes: give a shorter --run-dir", path, maxSocketLen)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) { // of a daemon that was killed
		return nil, fmt.Errorf("socket: %w", err)
	}
	old := unix.Umask(0o177)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathStatus, answer(d.status))
	mux.HandleFunc("GET "+pathRoutes, answer(d.routes))
	mux.HandleFunc("GET "+pathPeers, answer(d.peers))
	mux.HandleFunc("GET "+pathSubnets, answer(d.subnets))
	mux.HandleFunc("POST "+pathForget, func(w http.ResponseWriter, r *http.Request) {
		answer(func(ctx context.Context) (*blocksReport, error) { return d.forget(ctx, r.FormValue("node")) })(w, r)
	})
	mux.HandleFunc("POST "+pathLeave, answer(d.leave))
	mux.HandleFunc("GET "+pathKeys, answer(d.keys))
	mux.HandleFunc("GET "+pathExport, answer(d.exportKey))
	mux.HandleFunc("POST "+pathRotate, func(w http.ResponseWriter, r *http.Request) {
		answer(func(ctx context.Context) (*keysReport, error) { return d.rotateKeys(ctx, r.FormValue("grace")) })(w, r)
	})
	mux.HandleFunc("GET "+pathFlows, d.answerFlows)
	mux.HandleFunc("GET "+pathTrace, d.answerTrace)
	mux.HandleFunc("GET "+pathPing, d.answerPing)
	mux.HandleFunc("GET "+pathCapture, d.answerCapture)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/{name}", func(w http.ResponseWriter, r *http.Request) { pprof.Handler(r.PathValue("name")).ServeHTTP(w, r) })
	mux.HandleFunc("POST "+pathYield, answer(d.yield))
	mux.HandleFunc("POST "+pathYielded, d.answerYielded)
	mux.HandleFunc("POST "+pathGoOn, answer(d.goOnNow))
	mux.HandleFunc("POST "+cniapi.PathAdd, carryOut(d.pods.add))
	mux.HandleFunc("POST "+cniapi.PathDel, carryOut(d.pods.del))
	mux.HandleFunc("POST "+cniapi.PathCheck, carryOut(d.pods.check))
	mux.HandleFunc("POST "+cniapi.PathGC, carryOut(d.pods.gc))
	mux.HandleFunc("POST "+cniapi.PathStatus, carryOut(d.pods.status))
	mux.HandleFunc("POST "+cniapi.PathPool, carryOut(d.pods.pool))
	return &apiServer{listener: listener, server: &http.Server{Handler: mux, ReadHeaderTimeout: apiTimeout}, captures: &d.captures}, nil
}

// run serves until ctx ends, and the captures with it.
func (a *apiServer) run(ctx context.Context) error {
	defer a.captures.end()
	a.server.BaseContext = func(net.Listener) context.Context { return ctx }
	return serveHTTP(ctx, a.server, trustedListener{a.listener})
}

// serveHTTP serves until ctx ends.
func serveHTTP(ctx context.Context, server *http.Server, listener net.Listener) error {
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %s: %w", listener.Addr(), err)
	}
	return nil
}

// A trustedListener hangs up on every process that is neither root's nor of the daemon's own user.
type trustedListener struct{ *net.UnixListener }

func (l trustedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if holder.Trusted(conn) {
			return conn, nil
		}
		conn.Close()
	}
}

// answer serves what get returns as JSON.
func answer[T any](get func(context.Context) (T, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), apiTimeout)
		defer cancel()
		v, err := get(ctx)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(v) // fails only when the client has gone
	}
}

// maxRequest bounds the body of a request, in bytes: a GC names each of the node's pods.
const maxRequest = 4 << 20

// carryOut serves what do makes of a request. It goes on when the client has gone: what it asked for is then there to be
// deleted, and not half there. An error has its code and message in the body.
func carryOut[Request, Answer any](do func(Request) (Answer, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		var request Request
		decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&request); err != nil {
			refuse(w, &cniapi.Error{Code: cniapi.CodeDecode, Msg: fmt.Sprintf("request: %s", err)})
			return
		}
		v, err := do(request)
		if err != nil {
			refuse(w, err)
			return
		}
		json.NewEncoder(w).Encode(v) // fails only when the client has gone
	}
}

func refuse(w http.ResponseWriter, err error) {
	var e *cniapi.Error
	if !errors.As(err, &e) {
		e = &cniapi.Error{Code: cniapi.CodeInternal, Msg: err.Error()}
	}
	status := http.StatusBadRequest
	if e.Code == cniapi.CodeInternal {
		status = http.StatusInternalServerError
	}
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(e)
}

// ask gets one path of the daemon that serves runDir. Without a daemon the error has exit code 3.
func ask[T any](ctx context.Context, runDir, path string) (T, error) {
	return call[T](ctx, runDir, http.MethodGet, path)
}

// call asks for a report, or has something done and gets one of that.
func call[T any](ctx context.Context, runDir, method, path string) (T, error) {
	var v T
	socket := filepath.Join(runDir, socketName)
	client := http.Client{Timeout: 2 * apiTimeout, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://tulle"+path, nil)
	if err != nil {
		return v, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return v, &exitError{exitUnreachable, fmt.Errorf("no daemon answers on %s (%w): start tulle node, or name its directory with --run-dir", socket, rootCause(err))}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return v, fmt.Errorf("the daemon on %s refused: %s", socket, cmp.Or(strings.TrimSpace(string(why)), resp.Status))
	}
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
		return v, fmt.Errorf("answer of the daemon on %s: %w", socket, err)
	}
	return v, nil
}

// rootCause strips what net/http wraps around an error.
func rootCause(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}
