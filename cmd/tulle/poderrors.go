package main

import (
	"cmp"
	"errors"
	"io/fs"

	"github.com/tulle-net/tulle/control/attach"
	"github.com/tulle-net/tulle/control/cniapi"
	"github.com/tulle-net/tulle/control/ipam"
)

// coded gives an error the code of the CNI specification.
func coded(err error) error {
	if err == nil {
		return nil
	}
	code := 0
	for _, c := range []struct {
		is   error
		code int
	}{
		{ipam.ErrHeld, cniapi.CodeExists}, {attach.ErrExists, cniapi.CodeExists},
		{ipam.ErrPort, cniapi.CodePort}, {ipam.ErrFull, cniapi.CodeNoAddress}, {ipam.ErrTaken, cniapi.CodeNoAddress}, {ipam.ErrForeign, cniapi.CodeConfig},
		{attach.ErrNetns, cniapi.CodeEnvironment}, {attach.ErrDamaged, cniapi.CodeDamaged},
	} {
		if errors.Is(err, c.is) {
			code = cmp.Or(code, c.code)
		}
	}
	if errors.As(err, new(*fs.PathError)) { // the disk's
		code = cmp.Or(code, cniapi.CodeIO)
	}
	return &cniapi.Error{Code: cmp.Or(code, cniapi.CodeInternal), Msg: err.Error()}
}
