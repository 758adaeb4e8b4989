package main

import (
	"cmp"
	"debug/elf"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"

	"github.com/spf13/cobra"
)

// version is set by the build (-ldflags -X); a plain go build has the module's.
var version string

// versionString names the build: version, and the commit when the build knows it.
func versionString() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return cmp.Or(version, "unknown")
	}
	return cmp.Or(version, info.Main.Version, "unknown")
}

// buildID is what the linker calls this binary: other contents have another one. It is empty when the binary does not say.
var buildID = sync.OnceValue(func() string {
	f, err := elf.Open("/proc/self/exe")
	if err != nil {
		return ""
	}
	defer f.Close()
	note := f.Section(".note.go.buildid")
	if note == nil {
		return ""
	}
	data, err := note.Data()
	if err != nil || len(data) < buildIDOffset {
		return ""
	}
	return strings.TrimRight(string(data[buildIDOffset:]), "\x00")
})

// buildIDOffset is the length of the ELF note's header: three words and the name "Go\x00\x00".
const buildIDOffset = 16

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "tulle %s (%s, %s/%s)\n", versionString(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
