package main

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/control/attach"
	"github.com/tulle-net/tulle/control/cniapi"
	"github.com/tulle-net/tulle/control/ipam"
)

// ethernetHeader is what the kernel's limits count beside the IP packet, bytes.
const ethernetHeader = 14

// checkBandwidth refuses limits that let nothing through.
func checkBandwidth(b cniapi.Bandwidth, mtu int) error {
	for _, way := range []struct {
		name        string
		rate, burst uint64
	}{{"ingress", b.IngressRate, b.IngressBurst}, {"egress", b.EgressRate, b.EgressBurst}} {
		least := uint64(mtu+ethernetHeader) * 8
		switch {
		case way.rate == 0 && way.burst == 0:
		case way.rate < 8:
			return &cniapi.Error{Code: cniapi.CodeConfig, Msg: fmt.Sprintf("bandwidth: %sRate %d: 8 bits a second are the least", way.name, way.rate)}
		case way.burst < least:
			return &cniapi.Error{Code: cniapi.CodeConfig, Msg: fmt.Sprintf("bandwidth: %sBurst %d: less than a packet of the MTU, %d bits", way.name, way.burst, least)}
		}
	}
	return nil
}

// limits are a lease's bandwidth as the kernel knows it.
func limits(l ipam.Lease) control.Limits {
	b := l.Bandwidth
	limits := control.Limits{In: control.Limit{Rate: b.IngressRate / 8, Burst: b.IngressBurst / 8}, Out: control.Limit{Rate: b.EgressRate / 8, Burst: b.EgressBurst / 8}}
	if hasTAP(l) && b != (ipam.Bandwidth{}) {
		limits.Own = ownEnd(l)
	}
	return limits
}

func ownEnd(l ipam.Lease) *control.OwnEnd {
	said := ""
	return &control.OwnEnd{
		Name: l.Interface, Link: podLink(l.Owner),
		Within: func(f func() error) error {
			if err := tapOf(l).Within(f); !errors.Is(err, attach.ErrNetns) {
				return err
			}
			return nil
		},
		Failed: func(err error) {
			if err.Error() != said {
				slog.Error("a pod's bandwidth cannot be limited", "container", l.Container, "interface", l.Interface, "error", err)
			}
			said = err.Error()
		},
	}
}
