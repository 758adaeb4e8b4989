package gossip

import (
	"context"
	"log/slog"
	"strings"
)

// A logWriter takes memberlist's log lines for the store's log.
type logWriter struct{ store *Store }

func (w *logWriter) Write(line []byte) (int, error) {
	level, text := parseLog(string(line))
	w.store.config.Log.Log(context.Background(), level, text)
	return len(line), nil
}

// noisy lines tell of what View tells as well, or of what is normal when nodes come and go.
var noisy = []string{
	"Failed fallback TCP ping", "Push/Pull with", "Failed to send", "Refuting", "Got ping for unexpected node",
	"has failed, no acks received", "Marking ", "ignoring alive message", "Was able to connect", "Conflicting address",
	"failed to receive", "Stream connection", "Failed to decode", "not supported", "Failed to push local state", "Failed to read remote state",
	"Binding to public address without encryption",
}

// parseLog splits a line of memberlist into level and text.
func parseLog(line string) (slog.Level, string) {
	line = strings.TrimSpace(line)
	level := slog.LevelInfo
	if tag, rest, ok := strings.Cut(line, "] "); ok && strings.HasPrefix(tag, "[") {
		switch tag[1:] {
		case "DEBUG":
			level = slog.LevelDebug
		case "WARN":
			level = slog.LevelWarn
		case "ERR", "ERROR":
			level = slog.LevelError
		}
		line = rest
	}
	line = "gossip: " + strings.TrimPrefix(line, "memberlist: ")
	for _, part := range noisy {
		if strings.Contains(line, part) {
			return slog.LevelDebug, line
		}
	}
	return level, line
}
