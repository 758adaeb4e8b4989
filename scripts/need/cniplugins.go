package need

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// upstream are the reference plugins of CNI that tests run, of scripts/cniplugins.mod, which keeps what they need out of go.mod.
var upstream = []string{"ipam/host-local", "main/bridge", "meta/bandwidth", "meta/portmap", "meta/tuning"}

// CNIPlugins builds the reference plugins of CNI into dir. The working directory must be in the module, as it is in a test.
func CNIPlugins(ctx context.Context, dir string) error {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return fmt.Errorf("go env GOMOD: %w", err)
	}
	root := filepath.Dir(strings.TrimSpace(string(out)))
	args := []string{"build", "-modfile", filepath.Join(root, "scripts", "cniplugins.mod"), "-o", dir + "/"}
	for _, plugin := range upstream {
		args = append(args, "github.com/containernetworking/plugins/plugins/"+plugin)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the plugins of CNI: %w\n%s", err, out)
	}
	return nil
}
