package listing_test

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/tulle-net/tulle/control/listing"
)

func TestWhole(t *testing.T) {
	other := errors.New("another error")
	for name, tt := range map[string]struct {
		errs  []error // of the first calls; nil from then on
		calls int
		want  error
	}{
		"at once":               {nil, 1, nil},
		"interrupted twice":     {[]error{netlink.ErrDumpInterrupted, netlink.ErrDumpInterrupted}, 3, nil},
		"another error":         {[]error{other}, 1, other},
		"interrupted, then one": {[]error{netlink.ErrDumpInterrupted, other}, 2, other},
	} {
		calls := 0
		got, err := listing.Whole(func() ([]int, error) {
			calls++
			if calls <= len(tt.errs) {
				return []int{calls}, tt.errs[calls-1]
			}
			return []int{calls}, nil
		})
		if calls != tt.calls || !errors.Is(err, tt.want) || len(got) != 1 || got[0] != calls {
			t.Errorf("%s: %v, %v after %d calls; want %v after %d", name, got, err, calls, tt.want, tt.calls)
		}
	}
	if _, err := listing.Whole(func() ([]int, error) { return nil, netlink.ErrDumpInterrupted }); !errors.Is(err, netlink.ErrDumpInterrupted) {
		t.Errorf("always interrupted: %v", err)
	}
}
