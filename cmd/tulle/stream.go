package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
)

// A lineWriter writes the lines of a stream: JSON values, each sent at once.
type lineWriter struct {
	encoder *json.Encoder
	control *http.ResponseController
}

func newLineWriter(w http.ResponseWriter) *lineWriter {
	w.Header().Set("Content-Type", "application/x-ndjson")
	return &lineWriter{json.NewEncoder(w), http.NewResponseController(w)}
}

// write fails only when the client has gone.
func (w *lineWriter) write(v any) error {
	if err := w.encoder.Encode(v); err != nil {
		return err
	}
	return w.control.Flush()
}

// follow calls line with each value of a stream of the daemon that serves runDir, until the stream's end, ctx's, or an error of
// line's. A line that is the last one returns io.EOF; a stream that ends without one is a daemon that ended.
func follow[T any](ctx context.Context, runDir, path string, line func(T) error) error {
	socket := filepath.Join(runDir, socketName)
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true, ResponseHeaderTimeout: 2 * apiTimeout,
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://tulle"+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return &exitError{exitUnreachable, fmt.Errorf("no daemon answers on %s (%w): start tulle node, or name its directory with --run-dir", socket, rootCause(err))}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return refusal(resp)
	}
	decoder := json.NewDecoder(resp.Body)
	for {
		var v T
		if err := decoder.Decode(&v); err != nil {
			return &exitError{exitUnreachable, fmt.Errorf("the daemon on %s ended in the middle (%w)", socket, rootCause(err))}
		}
		switch err := line(v); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// refusal is what the daemon says to a request that it does not serve.
func refusal(resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
	err := errors.New(strings.TrimSpace(string(text)))
	switch resp.StatusCode {
	case http.StatusBadRequest:
		return &exitError{exitUsage, err}
	case http.StatusConflict:
		return &exitError{exitUnhealthy, err}
	}
	return err
}
