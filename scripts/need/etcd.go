package need

import (
	"context"
	"fmt"
	"path/filepath"
	"time"
)

// Etcd builds the server of etcd, of scripts/etcd.mod, which keeps what it needs out of go.mod, into dir and returns the program's path. The
// working directory must be in the module, as it is in a test.
func Etcd(ctx context.Context, dir string) (path string, err error) {
	path = filepath.Join(dir, "etcd")
	return path, build(ctx, "etcd.mod", path, "go.etcd.io/etcd/server/v3")
}

// EtcdArgs are those of a server that is alone, with its data in dir and its clients and peers at the URLs. Each time it is another cluster, if
// dir is empty.
func EtcdArgs(dir, client, peer string) []string {
	return []string{"--name", "one", "--data-dir", dir, "--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "one=" + peer,
		"--initial-cluster-token", fmt.Sprint(time.Now().UnixNano()), "--unsafe-no-fsync", "--log-level", "error"}
}
