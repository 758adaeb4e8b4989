package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
)

const image = "docker.io/tulle/busybox:e2e"

// applets are the programs of busybox that the containers use.
var applets = []string{"grep", "head", "httpd", "ip", "mkdir", "mkfifo", "nc", "netstat", "ping", "sh", "sha256sum", "sleep", "tee", "timeout", "wget"}

// writeImage writes an archive as `docker save` does, of one layer: busybox and its names.
func writeImage(path string) error {
	busybox, err := staticBusybox()
	if err != nil {
		return err
	}
	layer, err := archive(layerFiles(busybox))
	if err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Env": []string{"PATH=/bin"}, "Cmd": []string{"sh"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}}})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{image}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	whole, err := archive([]entry{file("manifest.json", 0o644, manifest), file("config.json", 0o644, config), file("layer.tar", 0o644, layer)})
	if err != nil {
		return err
	}
	return os.WriteFile(path, whole, 0o644)
}

// staticBusybox refuses one that needs libraries, which the container has not.
func staticBusybox() ([]byte, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return nil, fmt.Errorf("%s is not static: install the package busybox-static in its place", path)
		}
	}
	return b, nil
}

// entry is one member of a tar.
type entry struct {
	header tar.Header
	data   []byte
}

func file(name string, mode int64, data []byte) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: mode, Size: int64(len(data))}, data}
}

func layerFiles(busybox []byte) []entry {
	files := []entry{{header: tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755}}, file("bin/busybox", 0o755, busybox)}
	for _, applet := range applets {
		files = append(files, entry{header: tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}})
	}
	return files
}

func archive(entries []entry) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(&e.header); err != nil {
			return nil, err
		}
		if _, err := w.Write(e.data); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}
