package bench

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"
)

// CPUTime is what the whole machine has computed, whoever for: the first line of /proc/stat without idle and iowait (proc(5)),
// in steps of USER_HZ, 10 ms. The generator is in it.
type CPUTime struct {
	User time.Duration `json:"user"` // ns in JSON, as those below; nice is in it
	Sys  time.Duration `json:"sys"`
	Soft time.Duration `json:"soft"` // softirq and irq
	// Steal is the time that the hypervisor gave to others: not busy, but a reason to doubt a figure.
	Steal time.Duration `json:"steal"`
}

// Busy is all but what was stolen.
func (c CPUTime) Busy() time.Duration { return c.User + c.Sys + c.Soft }

func (c CPUTime) since(before CPUTime) CPUTime {
	return CPUTime{c.User - before.User, c.Sys - before.Sys, c.Soft - before.Soft, c.Steal - before.Steal}
}

func readCPU() (CPUTime, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return CPUTime{}, err
	}
	return parseCPU(b)
}

func parseCPU(stat []byte) (CPUTime, error) {
	const tick = 10 * time.Millisecond
	line, _, _ := bytes.Cut(stat, []byte("\n"))
	fields := bytes.Fields(line)
	if len(fields) < 9 || string(fields[0]) != "cpu" {
		return CPUTime{}, fmt.Errorf("parse /proc/stat: %q", line)
	}
	var t [9]time.Duration // user nice system idle iowait irq softirq steal, from 1
	for i := range t[1:] {
		n, err := strconv.ParseInt(string(fields[i+1]), 10, 64)
		if err != nil {
			return CPUTime{}, fmt.Errorf("parse /proc/stat: %w", err)
		}
		t[i+1] = time.Duration(n) * tick
	}
	return CPUTime{User: t[1] + t[2], Sys: t[3], Soft: t[6] + t[7], Steal: t[8]}, nil
}
