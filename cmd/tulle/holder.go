package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/tulle-net/tulle/dataplane/holder"
)

// holderSocket is the holder's, in the run directory.
const holderSocket = "holder.sock"

func newHolderCommand() *cobra.Command {
	var runDir, logFormat, logLevel string
	cmd := &cobra.Command{
		Use:   "holder",
		Short: "Keep the node's TAP, sockets and flows while its daemon is dead",
		Long: `Keep the node's TAP, sockets and flows while its daemon is dead, until SIGINT or SIGTERM.

The daemon of the same --run-dir gives it copies of its descriptors. While one is dead and the next one starts, packets wait in
the kernel's queues, and the flows keep their state. It opens nothing itself and reads no packet.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := setLogging(logFormat, logLevel); err != nil {
				return fmt.Errorf("tulle holder: %w", err)
			}
			if err := os.MkdirAll(runDir, 0o755); err != nil {
				return fmt.Errorf("tulle holder: run directory: %w", err)
			}
			path := filepath.Join(runDir, holderSocket)
			server, err := holder.Listen(path)
			if err != nil {
				return fmt.Errorf("tulle holder: %w", err)
			}
			slog.Info("holder runs", "socket", path)
			return server.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&runDir, "run-dir", defaultRunDir, "the daemon's run directory")
	f.StringVar(&logFormat, "log-format", "text", "text or json")
	f.StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	return cmd
}
