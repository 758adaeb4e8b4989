package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/tulle-net/tulle/control/atomicfile"
)

const (
	cniPlugin   = "tulle-cni"
	cniConflist = "10-tulle.conflist"
)

// cniInstall says where the container runtime looks for the plugin and its configuration. The zero value installs nothing.
type cniInstall struct {
	confDir, binDir string
}

// check refuses what cannot be installed, before anything else begins.
func (c cniInstall) check() error {
	for flag, dir := range map[string]string{"--cni-conf-dir": c.confDir, "--cni-bin-dir": c.binDir} {
		if dir != "" && !filepath.IsAbs(dir) {
			return usageError("%s %s: an absolute path is needed", flag, dir)
		}
	}
	if c.binDir == "" {
		return nil
	}
	if _, err := os.Stat(pluginPath()); err != nil {
		return fmt.Errorf("--cni-bin-dir: the plugin is not beside this binary: %w", err)
	}
	return nil
}

// pluginPath is the plugin that came with this binary.
func pluginPath() string {
	self, err := os.Executable()
	if err != nil {
		return cniPlugin
	}
	return filepath.Join(filepath.Dir(self), cniPlugin)
}

// install puts the plugin in place and then, as the sign that pods may come, its configuration. Each of both is replaced in one
// step: a runtime never runs half a binary or reads half a file.
func (c cniInstall) install(runDir string) error {
	if c.binDir != "" {
		if err := os.MkdirAll(c.binDir, 0o755); err != nil {
			return fmt.Errorf("CNI plugin: %w", err)
		}
		if err := atomicfile.Copy(filepath.Join(c.binDir, cniPlugin), pluginPath(), 0o755); err != nil {
			return fmt.Errorf("CNI plugin: %w", err)
		}
	}
	if c.confDir == "" {
		return nil
	}
	if err := os.MkdirAll(c.confDir, 0o755); err != nil {
		return fmt.Errorf("CNI configuration: %w", err)
	}
	data, err := conflistFor(runDir)
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(c.confDir, cniConflist), data, 0o600)
}

// withdraw removes the configuration, so that the runtime gives this node no pods while no daemon serves them. The plugin stays:
// pods that end need it.
func (c cniInstall) withdraw() error {
	if c.confDir == "" {
		return nil
	}
	if err := os.Remove(filepath.Join(c.confDir, cniConflist)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("CNI configuration: %w", err)
	}
	return nil
}

// conflistFor is a configuration of version 1.0.0, which containerd 1.6 and podman 4 read as well; the plugin speaks 1.1 too.
func conflistFor(runDir string) ([]byte, error) {
	type plugin struct {
		Type         string          `json:"type"`
		RunDir       string          `json:"runDir"`
		Capabilities map[string]bool `json:"capabilities"`
	}
	runDir, err := filepath.Abs(runDir)
	if err != nil {
		return nil, err
	}
	data, err := json.MarshalIndent(struct {
		CNIVersion string   `json:"cniVersion"`
		Name       string   `json:"name"`
		Plugins    []plugin `json:"plugins"`
	}{"1.0.0", "tulle", []plugin{{cniPlugin, runDir, map[string]bool{"ips": true, "mac": true, "portMappings": true, "bandwidth": true}}}}, "", "  ")
	return append(data, '\n'), err
}
