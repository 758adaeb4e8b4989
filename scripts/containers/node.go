package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/tulle-net/tulle/scripts/lab"
)

const (
	cniConfDir  = "/etc/cni/net.d"
	cniBinDir   = "/opt/cni/bin"
	cniCacheDir = "/var/lib/cni"
	debianCNI   = "/usr/lib/cni"
	portmap     = debianCNI + "/portmap"
	// chained is the CNI network in which the upstream portmap plugin comes behind tulle's.
	chained = "tulle-portmap"
)

// machine is a node with its container runtimes. Each has directories of its own.
type machine struct {
	lab.Node
	dir        string
	containerd *exec.Cmd
	ended      chan struct{} // closed when containerd has ended
}

func nodeDir(number int) string { return filepath.Join(work, fmt.Sprintf("n%d", number)) }

func (m *machine) path(name string) string { return filepath.Join(m.dir, name) }

// cniArgs are what a node's daemon gets to install its plugin.
func cniArgs(number int) []string {
	return []string{"--cni-conf-dir", filepath.Join(nodeDir(number), "net.d"), "--cni-bin-dir", filepath.Join(nodeDir(number), "bin"), "--ip-masq"}
}

// newMachine waits for the daemon's configuration, gives the runtimes theirs, and loads the image into both.
func newMachine(ctx context.Context, n lab.Node, archive string) (*machine, error) {
	m := &machine{Node: n, dir: nodeDir(n.Number)}
	installed := m.path("net.d/10-tulle.conflist")
	err := until(ctx, func() error { _, err := os.Stat(installed); return err })
	if err != nil {
		return nil, fmt.Errorf("node %s: the daemon does not install its configuration: %w", n.Name, err)
	}
	if err := m.configure(); err != nil {
		return nil, fmt.Errorf("node %s: %w", n.Name, err)
	}
	if err := m.startContainerd(ctx); err != nil {
		return m, fmt.Errorf("node %s: %w", n.Name, err)
	}
	for _, load := range []func(context.Context, ...string) (string, error){m.ctrImport, m.podmanLoad} {
		if _, err := load(ctx, archive); err != nil {
			return m, fmt.Errorf("node %s: %w", n.Name, err)
		}
	}
	return m, nil
}

func (m *machine) ctrImport(ctx context.Context, args ...string) (string, error) {
	return m.ctr(ctx, append([]string{"image", "import", "--snapshotter", "native"}, args...)...)
}

func (m *machine) podmanLoad(ctx context.Context, args ...string) (string, error) {
	return m.podman(ctx, append([]string{"load", "-i"}, args...)...)
}

// configure writes the files of containerd and podman, and the chained network. The native snapshotter and the vfs driver need nothing of
// the kernel: overlayfs may be a module that is not there.
func (m *machine) configure() error {
	for _, plugin := range []string{"loopback", "portmap"} {
		if err := os.Symlink(filepath.Join(debianCNI, plugin), m.path("bin/"+plugin)); err != nil {
			return err
		}
	}
	if err := os.Mkdir(m.path("cache"), 0o755); err != nil {
		return err
	}
	conflist, err := m.chainedConflist()
	if err != nil {
		return err
	}
	for name, text := range map[string]string{
		"net.d/20-" + chained + ".conflist": conflist,
		"containerd.toml": fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n",
			m.path("containerd-root"), m.path("containerd-state"), m.path("containerd.sock")),
		"containers.conf": fmt.Sprintf("[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [%q]\nnetwork_config_dir = %q\ndefault_network = \"tulle\"\n"+
			"[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nruntime = \"runc\"\ntmp_dir = %q\n", m.path("bin"), m.path("net.d"), m.path("podman-tmp")),
		"storage.conf": fmt.Sprintf("[storage]\ndriver = \"vfs\"\ngraphroot = %q\nrunroot = %q\n", m.path("podman-root"), m.path("podman-run")),
	} {
		if err := os.WriteFile(m.path(name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// chainedConflist is the daemon's, with ports left to the upstream plugin.
func (m *machine) chainedConflist() (string, error) {
	b, err := os.ReadFile(m.path("net.d/10-tulle.conflist"))
	if err != nil {
		return "", err
	}
	var list map[string]any
	if err := json.Unmarshal(b, &list); err != nil {
		return "", err
	}
	list["name"] = chained
	plugins := list["plugins"].([]any)
	delete(plugins[0].(map[string]any)["capabilities"].(map[string]any), "portMappings")
	list["plugins"] = append(plugins, map[string]any{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}})
	b, err = json.MarshalIndent(list, "", "  ")
	return string(b), err
}

// startContainerd runs it until stop, and waits until it answers.
func (m *machine) startContainerd(ctx context.Context) error {
	log, err := os.Create(m.path("containerd.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	m.containerd = exec.Command("containerd", "--config", m.path("containerd.toml"))
	m.containerd.Stdout, m.containerd.Stderr = log, log
	if err := lab.In(m.Namespace, m.containerd.Start); err != nil {
		return err
	}
	m.ended = make(chan struct{})
	go func() { m.containerd.Wait(); close(m.ended) }() // ends with the process, which stop ends
	err = until(ctx, func() error { _, err := m.ctr(ctx, "version"); return err })
	if err != nil {
		said, _ := os.ReadFile(m.path("containerd.log"))
		return fmt.Errorf("containerd does not answer: %w\n%s", err, said)
	}
	return nil
}

func (m *machine) stop() {
	if m.containerd != nil && m.containerd.Process != nil {
		m.containerd.Process.Kill()
		<-m.ended
	}
}

// ctrArgv has ctr see the node's CNI directories where it looks for them.
func (m *machine) ctrArgv(args ...string) []string {
	script := ""
	for to, from := range map[string]string{cniConfDir: "net.d", cniBinDir: "bin", cniCacheDir: "cache"} {
		script += fmt.Sprintf("mount --bind %s %s && ", m.path(from), to)
	}
	return append([]string{"unshare", "-m", "sh", "-c", script + `exec "$@"`, "sh", "ctr", "--address", m.path("containerd.sock"), "--namespace", cgroupName}, args...)
}

func (m *machine) podmanArgv(args ...string) []string { return append([]string{"podman"}, args...) }

func (m *machine) ctr(ctx context.Context, args ...string) (string, error) {
	return m.command(ctx, m.ctrArgv(args...)...)
}

func (m *machine) podman(ctx context.Context, args ...string) (string, error) {
	return m.command(ctx, m.podmanArgv(args...)...)
}

// command runs a program in the node's network namespace. The error has what it said.
func (m *machine) command(ctx context.Context, argv ...string) (string, error) {
	var stderr bytes.Buffer
	cmd := m.prepare(ctx, argv...)
	cmd.Stderr = &stderr
	var out []byte
	err := lab.In(m.Namespace, func() (err error) { out, err = cmd.Output(); return err })
	if err != nil {
		return "", fmt.Errorf("%s: %s: %w\n%s%s", m.Name, strings.Join(argv, " "), err, out, stderr.Bytes())
	}
	return strings.TrimSpace(string(out)), nil
}

func (m *machine) prepare(ctx context.Context, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.WaitDelay = time.Second
	cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+m.path("containers.conf"), "CONTAINERS_STORAGE_CONF="+m.path("storage.conf"), "TMPDIR="+filepath.Join(work, "tmp"))
	return cmd
}

// get asks a web server from the node.
func (m *machine) get(ctx context.Context, at netip.AddrPort) (string, error) {
	var conn net.Conn
	err := lab.In(m.Namespace, func() (err error) {
		conn, err = (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", at.String())
		return err
	})
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprint(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return "", err
	}
	r, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return strings.TrimSpace(string(b)), err
}

// until asks again until there is no error, for a minute at most.
func until(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}
