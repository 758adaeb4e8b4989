package control

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/vishvananda/netlink"
)

// resubscribeDelay is waited before a broken subscription is renewed.
const resubscribeDelay = 200 * time.Millisecond

// watch turns the kernel's announcements of links, addresses and routes into wake-ups, and those of neighbours if asked to. A
// subscription that breaks (its buffer ran over) is renewed.
func watch(ctx context.Context, neighbours bool, wake func()) {
	for ctx.Err() == nil {
		if err := subscribe(ctx, neighbours, wake); err != nil {
			slog.Warn("kernel announcements missed; looking at everything", "error", err)
		}
		wake()
		select {
		case <-ctx.Done():
		case <-time.After(resubscribeDelay):
		}
	}
}

// subscribe calls wake for each announcement until ctx ends or the subscription breaks.
func subscribe(ctx context.Context, neighbours bool, wake func()) error {
	done := make(chan struct{})
	defer close(done)
	broken := make(chan error, 4)
	fail := func(err error) {
		select {
		case broken <- err:
		default:
		}
	}
	links, addrs := make(chan netlink.LinkUpdate), make(chan netlink.AddrUpdate)
	routes, neighs := make(chan netlink.RouteUpdate), make(chan netlink.NeighUpdate)
	if err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ErrorCallback: fail}); err != nil {
		return fmt.Errorf("subscribe to links: %w", err)
	}
	defer drain(links)
	if err := netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{ErrorCallback: fail}); err != nil {
		return fmt.Errorf("subscribe to addresses: %w", err)
	}
	defer drain(addrs)
	if err := netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{ErrorCallback: fail}); err != nil {
		return fmt.Errorf("subscribe to routes: %w", err)
	}
	defer drain(routes)
	if neighbours {
		if err := netlink.NeighSubscribeWithOptions(neighs, done, netlink.NeighSubscribeOptions{ErrorCallback: fail}); err != nil {
			return fmt.Errorf("subscribe to neighbours: %w", err)
		}
		defer drain(neighs)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-broken:
			return err
		case <-links:
		case <-addrs:
		case <-routes:
		case <-neighs:
		}
		wake()
	}
}

// drain lets the library's goroutine end that may be sending; it closes the channel when it does.
func drain[T any](c <-chan T) {
	go func() {
		for range c {
		}
	}()
}
