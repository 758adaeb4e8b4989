package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
)

// apiSocket is the daemon's local API, in its run directory.
const apiSocket = "tulle.sock"

// Ask reads from the local API of the node's daemon, such as /v1/status or /debug/pprof/heap.
func (n Node) Ask(ctx context.Context, path string) ([]byte, error) {
	return n.call(ctx, http.MethodGet, path, nil)
}

// Post hands the local API a body and reads the answer.
func (n Node) Post(ctx context.Context, path string, body []byte) ([]byte, error) {
	return n.call(ctx, http.MethodPost, path, bytes.NewReader(body))
}

func (n Node) call(ctx context.Context, method, path string, body io.Reader) ([]byte, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, "unix", filepath.Join(n.RunDir, apiSocket))
		}}}
	request, err := http.NewRequestWithContext(ctx, method, "http://tulle"+path, body)
	if err != nil {
		return nil, err
	}
	answer, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", n.Name, err)
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("node %s: %s: %s: %s", n.Name, path, answer.Status, strings.TrimSpace(string(b)))
	}
	return b, err
}
