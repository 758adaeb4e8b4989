package main

import (
	"errors"
	"fmt"
	"os"
)

// Exit codes, a contract with scripts.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitUnreachable = 3 // no daemon answers
	exitUnhealthy   = 4 // or a check that turned out negative
)

// An exitError carries the exit code that its error ends the program with.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// usageError is an error of the command line, exit code 2.
func usageError(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

// exitCode returns the code that err ends the program with.
func exitCode(err error) int {
	var e *exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e.code
	}
	return exitFailed
}

// needRoot refuses to go on without the rights that a command needs.
func needRoot(command, reason string) error {
	if os.Geteuid() == 0 {
		return nil
	}
	return usageError("%s: needs root (%s): run it with sudo", command, reason)
}
