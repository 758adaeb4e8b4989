package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	lockPath = "/run/tulle-lab.lock"
	upWait   = 5 * time.Minute
	downWait = 10 * time.Second
)

// machineLock serializes labs on the whole machine, for the names of namespaces are machine-wide. Up and Down hold it
// while they work, the owner of an ephemeral lab holds it as long as the lab is up. The file also says where the lab's
// record is (see claim), so that a lab left by a killed process is found from any directory. It is never removed: two
// processes could then hold locks on two files of the same name.
type machineLock struct{ f *os.File }

// claim is the content of the lock file: the directory of the lab that is up or was when its maker was killed.
type claim struct {
	Dir      string   `json:"dir"`
	MadeDirs []string `json:"madeDirs"`
	Owner    process  `json:"owner"`
}

func acquire(ctx context.Context, wait time.Duration, progress io.Writer) (*machineLock, error) {
	f, err := os.OpenFile(lockPath, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	l := &machineLock{f}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for said := false; ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", lockPath, err)
		}
		holder := l.claim()
		if !said {
			fmt.Fprintf(progress, "waiting for the lab of process %d in %s\n", holder.Owner.PID, holder.Dir)
			said = true
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("the lab in %s is in use by process %d: end it first: %w",
				holder.Dir, holder.Owner.PID, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// claim reads the lock file; an empty or torn one is the zero claim.
func (l *machineLock) claim() claim {
	var c claim
	b := make([]byte, 4096)
	n, _ := l.f.ReadAt(b, 0)
	if json.Unmarshal(b[:n], &c) != nil {
		return claim{}
	}
	return c
}

func (l *machineLock) setClaim(c claim) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if err := l.f.Truncate(0); err != nil {
		return err
	}
	_, err = l.f.WriteAt(b, 0)
	return err
}

func (l *machineLock) release() { l.f.Close() }
