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
	var packages []string
	for _, plugin := range upstream {
		packages = append(packages, "github.com/containernetworking/plugins/plugins/"+plugin)
	}
	return build(ctx, "cniplugins.mod", dir+"/", packages...)
}

// build builds packages of one of the scripts' modules.
func build(ctx context.Context, module, out string, packages ...string) error {
	mod, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return fmt.Errorf("go env GOMOD: %w", err)
	}
	root := filepath.Dir(strings.TrimSpace(string(mod)))
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-modfile", filepath.Join(root, "scripts", module), "-o", out}, packages...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", strings.Join(packages, " "), err, said)
	}
	return nil
}
