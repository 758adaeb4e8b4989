package main

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// keyLen is the length of a cluster key in bytes: AES-256.
const keyLen = 32

func newKeygenCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "keygen",
		Short: "Make a cluster key",
		Long: `Make a cluster key: 32 random bytes in base64. Every node of a cluster has the same one (tulle node --key-file); who
has it can join the cluster and speak for a node.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			key := make([]byte, keyLen)
			rand.Read(key)
			text := base64.StdEncoding.EncodeToString(key) + "\n"
			if file == "" {
				_, err := fmt.Fprint(cmd.OutOrStdout(), text)
				return err
			}
			if err := writeNewFile(file, text); err != nil {
				return fmt.Errorf("tulle keygen: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "write", "w", "", "write the key to this new file, readable by its owner only")
	return cmd
}

// writeNewFile makes a file that was not there, mode 0600.
func writeNewFile(path, content string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already: a key in use is not overwritten; remove it first or choose another name", path)
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// readKey reads a cluster key from its file.
func readKey(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("--key-file: %w (make a key with: tulle keygen -w %s)", err, path)
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(key) != keyLen {
		return nil, fmt.Errorf("--key-file %s: not a key of tulle keygen (32 bytes in base64)", path)
	}
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
		slog.Warn("others can read the cluster key: chmod 600 it", "file", path, "mode", info.Mode().Perm())
	}
	return key, nil
}
