package main

import (
	"fmt"

	"github.com/tulle-net/tulle/control"
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
func limits(b ipam.Bandwidth) (in, out control.Limit) {
	return control.Limit{Rate: b.IngressRate / 8, Burst: b.IngressBurst / 8}, control.Limit{Rate: b.EgressRate / 8, Burst: b.EgressBurst / 8}
}
