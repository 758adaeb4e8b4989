package main

import (
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// captureNice makes a capture yield to the packet path where both want the same CPU: what it does not come to is missed, and counted.
const captureNice = 19

// yieldThread keeps the goroutine on a thread of its own, which ends with it and has less of a claim to the CPU than others.
func yieldThread() {
	runtime.LockOSThread()
	unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), captureNice) // refused: then it has the same claim
}

// yieldProcess does so for all threads of the process, and those that they make. One of them at a time runs: others that look for work
// would only take it from the packet path.
func yieldProcess() {
	runtime.GOMAXPROCS(1)
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, task := range tasks {
		if id, err := strconv.Atoi(task.Name()); err == nil {
			unix.Setpriority(unix.PRIO_PROCESS, id, captureNice)
		}
	}
}
