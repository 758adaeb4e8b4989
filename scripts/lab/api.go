package lab

import (
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
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, "unix", filepath.Join(n.RunDir, apiSocket))
		}}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://tulle"+path, nil)
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
