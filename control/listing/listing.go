// Package listing reads what the kernel lists over rtnetlink(7), whole.
package listing

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// tries bounds how often a list is asked for: while 200 pods come at once a few are interrupted.
const tries = 50

// Whole returns what list does. A list that others changed while the kernel wrote it (NLM_F_DUMP_INTR) may lack what was there all
// the time, and is asked for again.
func Whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range tries {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}
