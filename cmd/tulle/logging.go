package main

import (
	"log/slog"
	"os"
)

// setLogging makes slog's default logger write to standard error, as text or as JSON, from a level on.
func setLogging(format, level string) error {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return usageError("--log-level %s: unknown (allowed: debug, info, warn, error)", level)
	}
	options := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, options)))
	case "json":
		slog.SetDefault(slog.New(slog.NewJSONHandler(os.Stderr, options)))
	default:
		return usageError("--log-format %s: unknown (allowed: text, json)", format)
	}
	return nil
}
