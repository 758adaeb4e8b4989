package need

import (
	"context"
	"path/filepath"
)

// Etcd builds the server of etcd, of scripts/etcd.mod, which keeps what it needs out of go.mod, into dir and returns the program's path. The
// working directory must be in the module, as it is in a test.
func Etcd(ctx context.Context, dir string) (path string, err error) {
	path = filepath.Join(dir, "etcd")
	return path, build(ctx, "etcd.mod", path, "go.etcd.io/etcd/server/v3")
}
