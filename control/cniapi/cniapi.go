// Package cniapi is what the CNI plugin and the daemon say to each other, as JSON over HTTP on the daemon's unix socket.
//
// It holds no logic and imports next to nothing, so that the plugin starts fast. Codes are those of the CNI specification 1.1,
// section "Error".
package cniapi

import "net/netip"

// Paths, all of them POST.
const (
	PathAdd    = "/v1/cni/add"    // AddRequest, AddResult
	PathDel    = "/v1/cni/del"    // Attachment, Empty
	PathCheck  = "/v1/cni/check"  // CheckRequest, Empty
	PathGC     = "/v1/cni/gc"     // GCRequest, Empty
	PathStatus = "/v1/cni/status" // Empty, Empty
	PathPool   = "/v1/cni/pool"   // Attachment, Pool
)

// Codes of errors.
const (
	CodeUnknownContainer = 3
	CodeEnvironment      = 4
	CodeIO               = 5
	CodeDecode           = 6
	CodeConfig           = 7
	CodeTryAgain         = 11
	CodeUnavailable      = 50
	CodeExists           = 100 // the container has this interface already
	CodeNoAddress        = 101 // none is free, or the static one is taken
	CodeDamaged          = 102 // CHECK: something is not as ADD made it
	CodePort             = 103 // the node's port is mapped to another container
	CodeInternal         = 999
)

// Kinds of interface.
const (
	KindVeth = "veth" // one end of a pair
	KindTAP  = "tap"  // a TAP whose other end the engine has
)

// Empty is a request or an answer without content.
type Empty struct{}

// An Attachment is one interface of one container on one network.
type Attachment struct {
	Network     string `json:"network"` // name of the CNI configuration
	ContainerID string `json:"containerID"`
	Interface   string `json:"interface"`
	Netns       string `json:"netns,omitempty"` // path; not needed to delete
}

// An AddRequest asks for an interface.
type AddRequest struct {
	Attachment
	Kind  string       `json:"kind,omitempty"`  // KindVeth if empty
	Addrs []netip.Addr `json:"addrs,omitempty"` // static ones, one for each family at most
	MAC   string       `json:"mac,omitempty"`   // of the pod's interface
	Ports []Port       `json:"ports,omitempty"`

	Bandwidth Bandwidth `json:"bandwidth,omitzero"`
}

// A Bandwidth bounds what a container gets (ingress) and sends (egress): the capability bandwidth. A rate of 0 bounds nothing.
type Bandwidth struct {
	IngressRate  uint64 `json:"ingressRate"`  // bits/s
	IngressBurst uint64 `json:"ingressBurst"` // bits
	EgressRate   uint64 `json:"egressRate"`
	EgressBurst  uint64 `json:"egressBurst"`
}

// A Port is one of the node's that leads to a container: an entry of the capability portMappings.
type Port struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

// An AddResult says what the pod has now.
type AddResult struct {
	Link    string `json:"link,omitempty"` // the node's end; KindTAP has none
	LinkMAC string `json:"linkMAC"`
	MAC     string `json:"mac"`
	MTU     int    `json:"mtu"` // bytes, of both ends
	IPs     []IP   `json:"ips"`
}

// An IP is an address of a pod with the gateway of its default route.
type IP struct {
	Address netip.Prefix `json:"address"`
	Gateway netip.Addr   `json:"gateway"`
}

// A Pool is what plugins that give pods their addresses themselves need to know of the node.
type Pool struct {
	MTU    int     `json:"mtu"` // of pods, bytes
	Ranges []Range `json:"ranges"`
}

// A Range is the addresses that pods may have, in one family.
type Range struct {
	Subnet  netip.Prefix `json:"subnet"`
	First   netip.Addr   `json:"first"`
	Last    netip.Addr   `json:"last"`
	Gateway netip.Addr   `json:"gateway"` // of pods on a bridge
}

// A CheckRequest asks whether a pod still has what ADD gave it.
type CheckRequest struct {
	Attachment
	Addrs []netip.Addr `json:"addrs"` // that ADD's result had on this interface
}

// A GCRequest names all attachments of a network that are still there.
type GCRequest struct {
	Network string       `json:"network"`
	Valid   []Attachment `json:"valid"` // Network and Netns are not looked at
}

// An Error is the body of every answer but 200.
type Error struct {
	Code int    `json:"code"`
	Msg  string `json:"msg"`
}

func (e *Error) Error() string { return e.Msg }
