package lab

import (
	"fmt"

	"github.com/safchain/ethtool"
)

// offloads are the features that let a packet cross a veth larger than the MTU or without a finished checksum. GRO is not
// among them: a fresh veth has it off, and turning it on puts a 256-entry ring in the way, which changes what is measured.
var offloads = []string{
	"rx-checksum",
	"tx-checksum-ip-generic",
	"tx-checksum-sctp",
	"tx-scatter-gather",
	"tx-scatter-gather-fraglist",
	"tx-generic-segmentation",
	"tx-tcp-segmentation",
	"tx-tcp-ecn-segmentation",
	"tx-tcp-mangleid-segmentation",
	"tx-tcp-accecn-segmentation",
	"tx-tcp6-segmentation",
	"tx-udp-segmentation",
	"tx-udp_tnl-segmentation",
	"tx-udp_tnl-csum-segmentation",
	"tx-gso-list",
	"tx-gre-segmentation",
	"tx-gre-csum-segmentation",
	"tx-ipxip4-segmentation",
	"tx-ipxip6-segmentation",
	"tx-sctp-segmentation",
}

// gro is off either way, see offloads.
var gro = []string{"rx-gro", "rx-gro-list", "rx-udp-gro-forwarding"}

// SetOffloads turns checksum and segmentation offloads of every underlay veth, both ends, on (as a fresh lab has them) or
// off, so that every packet crosses the underlay as on a wire: at most MTU long, checksums finished.
func (l *Lab) SetOffloads(on bool) error {
	for _, e := range l.underlayEnds() {
		if err := In(e.namespace, func() error { return setOffloads(e.link, on) }); err != nil {
			return fmt.Errorf("%s: %w", e.namespace, err)
		}
	}
	return nil
}

// end is one of the two of a veth.
type end struct{ namespace, link string }

// underlayEnds lists both ends of every underlay veth.
func (l *Lab) underlayEnds() (ends []end) {
	for _, n := range l.Nodes() {
		ends = append(ends, end{n.Namespace, "eth0"}, end{underlayNamespace, underlayPort(n.Number)})
	}
	if l.record().Routed {
		for _, s := range segments {
			ends = append(ends, end{RouterNamespace, s.routerLink()}, end{underlayNamespace, s.routerPort()})
		}
	}
	return ends
}

// offloadsOn says whether a link leaves checksums to others; so it is with all of offloads or with none.
func offloadsOn(link string) (bool, error) {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return false, fmt.Errorf("ethtool: %w", err)
	}
	defer e.Close()
	have, err := e.Features(link)
	if err != nil {
		return false, fmt.Errorf("features of %s: %w", link, err)
	}
	return have["tx-checksum-ip-generic"], nil
}

// setOffloads works in the calling thread's namespace, asks only for features that this kernel knows, and reads back.
func setOffloads(link string, on bool) error {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return fmt.Errorf("ethtool: %w", err)
	}
	defer e.Close()
	known, err := e.FeatureNames(link)
	if err != nil {
		return fmt.Errorf("features of %s: %w", link, err)
	}
	want := map[string]bool{}
	for _, f := range offloads {
		if _, ok := known[f]; ok {
			want[f] = on
		}
	}
	for _, f := range gro {
		if _, ok := known[f]; ok {
			want[f] = false
		}
	}
	if err := e.Change(link, want); err != nil {
		return fmt.Errorf("set features of %s: %w", link, err)
	}
	have, err := e.Features(link)
	if err != nil {
		return fmt.Errorf("features of %s: %w", link, err)
	}
	for f, v := range want {
		if have[f] != v {
			return fmt.Errorf("feature %s of %s is %t after setting it to %t", f, link, have[f], v)
		}
	}
	return nil
}
