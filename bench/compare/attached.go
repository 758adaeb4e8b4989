package compare

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/tulle-net/tulle/control/cniapi"
	"github.com/tulle-net/tulle/scripts/lab"
)

// attached are two pods, one on each node, with the interface that the path's attachment makes.
type attached struct {
	boxes []*lab.Sandbox
	addrs [2]netip.Addr
}

// attach asks the nodes' daemons, as the CNI plugin does.
func attach(ctx context.Context, nodes []lab.Node, kind string) (a *attached, err error) {
	a = &attached{}
	for i, n := range nodes {
		box, err := lab.NewSandbox()
		if err != nil {
			return nil, errors.Join(err, a.Close())
		}
		a.boxes = append(a.boxes, box)
		request := cniapi.AddRequest{Kind: kind, Attachment: cniapi.Attachment{Network: "bench", ContainerID: fmt.Sprint("pod", i), Interface: "eth0", Netns: box.Path()}}
		var made cniapi.AddResult
		if err = ask(ctx, n, cniapi.PathAdd, request, &made); err == nil && len(made.IPs) == 0 {
			err = errors.New("no address")
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("attach a pod to %s: %w", n.Name, err), a.Close())
		}
		a.addrs[i] = made.IPs[0].Address.Addr()
	}
	return a, nil
}

// ask posts a request to a node's daemon.
func ask(ctx context.Context, n lab.Node, path string, request, answer any) error {
	body, err := json.Marshal(request)
	if err == nil {
		body, err = n.Post(ctx, path, body)
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(body, answer)
}

func (a *attached) in(side int, f func() error) error { return a.boxes[side].In(f) }

// Close lets go of the pods, which their nodes find out by themselves.
func (a *attached) Close() error {
	var errs []error
	for _, b := range a.boxes {
		errs = append(errs, b.Close())
	}
	return errors.Join(errs...)
}
