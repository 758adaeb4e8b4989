package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is the identity of a process: the start time (clock ticks since boot, field 22 of /proc/PID/stat) tells a
// reused pid from the one recorded.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
}

func identify(pid int) (process, error) {
	_, start, err := readStat(pid)
	return process{PID: pid, Start: start}, err
}

// alive is false for a zombie: it runs nothing and holds nothing.
func (p process) alive() bool {
	if p.PID <= 0 {
		return false
	}
	state, start, err := readStat(p.PID)
	return err == nil && start == p.Start && state != 'Z' && state != 'X'
}

// running is alive and not stopped by a signal.
func (p process) running() bool {
	state, _, err := readStat(p.PID)
	return err == nil && state != 'T' && p.alive()
}

// signal sends s to exactly this process: the handle taken by FindProcess is a pidfd, and the identity is checked after.
func (p process) signal(s os.Signal) error {
	h, err := os.FindProcess(p.PID)
	if err != nil {
		return err
	}
	defer h.Release()
	if !p.alive() {
		return os.ErrProcessDone
	}
	return h.Signal(s)
}

func readStat(pid int) (state byte, start uint64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	// The command name, in parentheses, may hold anything: fields are counted from its end, where field 3 begins.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 20 {
		return 0, 0, fmt.Errorf("parse /proc/%d/stat: %d fields", pid, len(fields))
	}
	start, err = strconv.ParseUint(string(fields[19]), 10, 64)
	return fields[0][0], start, err
}

// processesIn lists the processes whose network namespace is one of inodes, the caller's own excepted.
func processesIn(inodes map[uint64]bool) []process {
	var found []process
	links, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil {
			continue // ended, or a zombie
		}
		ino, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(target, "net:["), "]"), 10, 64)
		if err != nil || !inodes[ino] {
			continue
		}
		pid, _ := strconv.Atoi(strings.Split(link, "/")[2])
		if p, err := identify(pid); err == nil && pid != os.Getpid() {
			found = append(found, p)
		}
	}
	return found
}

// terminate ends processes: SIGTERM (and SIGCONT, for a stopped one would never see it), grace, SIGKILL, grace again.
func terminate(ps []process, grace time.Duration) error {
	for _, step := range [][]os.Signal{{syscall.SIGTERM, syscall.SIGCONT}, {syscall.SIGKILL}} {
		for _, p := range ps {
			for _, s := range step {
				if err := p.signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
					return fmt.Errorf("%v to process %d: %w", s, p.PID, err)
				}
			}
		}
		if ps = awaitEnd(ps, grace); len(ps) == 0 {
			return nil
		}
	}
	return fmt.Errorf("process %d does not end on SIGKILL", ps[0].PID)
}

// awaitEnd waits at most d for processes to end and returns those that live on.
func awaitEnd(ps []process, d time.Duration) []process {
	for deadline := time.Now().Add(d); ; time.Sleep(5 * time.Millisecond) {
		var left []process
		for _, p := range ps {
			if p.alive() {
				left = append(left, p)
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
		ps = left
	}
}
