package main

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"sync/atomic"

	"github.com/tulle-net/tulle/scripts/lab"
)

// container is one that runs: a web server that says its name.
type container struct {
	name string
	on   *machine
	addr netip.Addr
	how  handler
}

// handler is what a container runtime does.
type handler interface {
	start(ctx context.Context, c *container) error
	exec(ctx context.Context, c *container, command string) (string, error)
	remove(ctx context.Context, c *container) error
}

// serve is a container's command.
func serve(name string) string {
	return "mkdir -p /www && echo " + name + " >/www/index.html && exec httpd -f -p 80 -h /www"
}

func (c *container) exec(ctx context.Context, format string, args ...any) (string, error) {
	out, err := c.how.exec(ctx, c, fmt.Sprintf(format, args...))
	if err != nil {
		err = fmt.Errorf("%s: %w", c.name, err)
	}
	return out, err
}

// begin starts the container and learns its address from inside.
func (c *container) begin(ctx context.Context) error {
	if err := c.how.start(ctx, c); err != nil {
		return err
	}
	return until(ctx, func() error {
		out, err := c.exec(ctx, "ip -4 -o addr show dev eth0; wget -q -O - http://127.0.0.1/")
		if err != nil {
			return err
		}
		fields := strings.Fields(out)
		if len(fields) < 4 {
			return fmt.Errorf("%s: no address on eth0: %q", c.name, out)
		}
		prefix, err := netip.ParsePrefix(fields[3])
		c.addr = prefix.Addr()
		return err
	})
}

// byContainerd runs a container with ctr in the foreground: only then does ctr give the network back.
type byContainerd struct {
	ended chan error
	said  *strings.Builder
	execs atomic.Int64 // each has a name of its own
}

func (h *byContainerd) start(ctx context.Context, c *container) error {
	h.ended, h.said = make(chan error, 1), &strings.Builder{}
	argv := c.on.ctrArgv("run", "--rm", "--cni", "--snapshotter", "native", image, c.name, "sh", "-c", serve(c.name))
	cmd := c.on.prepare(context.WithoutCancel(ctx), argv...) // ends with its container
	cmd.Stdout, cmd.Stderr = h.said, h.said
	if err := lab.In(c.on.Namespace, cmd.Start); err != nil {
		return err
	}
	go func() { h.ended <- cmd.Wait() }()
	return nil
}

func (h *byContainerd) exec(ctx context.Context, c *container, command string) (string, error) {
	select {
	case err := <-h.ended:
		h.ended <- err
		return "", fmt.Errorf("ctr has ended: %v\n%s", err, h.said)
	default:
	}
	id := fmt.Sprintf("e%d", h.execs.Add(1))
	return c.on.ctr(ctx, "task", "exec", "--exec-id", id, c.name, "sh", "-c", command)
}

func (h *byContainerd) remove(ctx context.Context, c *container) error {
	if _, err := c.on.ctr(ctx, "task", "kill", "--signal", "SIGKILL", c.name); err != nil {
		return err
	}
	select {
	case err := <-h.ended:
		if exit, ok := err.(*exec.ExitError); ok && exit.ExitCode() == 137 { // the container's
			return nil
		}
		return fmt.Errorf("%s: ctr run ended with %v\n%s", c.name, err, h.said)
	case <-ctx.Done():
		return fmt.Errorf("%s: ctr run does not end: %w", c.name, ctx.Err())
	}
}

// byPodman runs a container of a CNI network, with a port of the node if there is one.
type byPodman struct {
	network string
	port    int
}

func (h *byPodman) start(ctx context.Context, c *container) error {
	args := []string{"run", "--detach", "--name", c.name, "--network", h.network, "--cgroup-parent", "/" + cgroupName, "--cap-add", "NET_RAW"}
	if h.port != 0 {
		args = append(args, "--publish", fmt.Sprintf("%d:80", h.port))
	}
	_, err := c.on.podman(ctx, append(args, image, "sh", "-c", serve(c.name))...)
	return err
}

func (h *byPodman) exec(ctx context.Context, c *container, command string) (string, error) {
	return c.on.podman(ctx, "exec", c.name, "sh", "-c", command)
}

func (h *byPodman) remove(ctx context.Context, c *container) error {
	_, err := c.on.podman(ctx, "rm", "--force", "--time", "0", c.name)
	return err
}
