package main

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/tulle-net/tulle/scripts/lab"
	"github.com/tulle-net/tulle/scripts/need"
)

// A debugging is the lab of docs/debugging.md: two nodes n1 and n2 with a pod each.
type debugging struct {
	t    *testing.T
	lab  *lab.Lab
	path string // with tulle in it
}

// blockTimeout bounds one run of a block, blockTries how often one that prints something else is run again.
const (
	blockTimeout = 5 * time.Second
	blockTries   = 15
)

// pagePings are what the page's pod pings with while a block runs, by the block's last word.
var pagePings = map[string]string{
	"pinging": "ping -i 0.2 10.244.2.2",
	"large":   "while :; do ip route flush cache; ping -M do -s 1422 -c 1 -W 0.2 10.244.2.2; done", // each time as if for the first time
	"foreign": "ping -i 0.2 -I 10.244.99.9 10.244.2.2",
}

// faults make what the page's problems are about, by the words in its comments, and return what takes them back.
var faults = map[string]func(*debugging) (undo func()){
	"wrong MTU": func(d *debugging) func() {
		d.must(d.lab.SetNodeMTU(1, 1400))
		return func() {
			d.must(d.lab.SetNodeMTU(1, 0))
			eventually(d.t, "the wide path again", func() bool { return pathMTUs(d.t, d.lab, 1, "n2")[d.node(2).PublicIP] == 1450 })
		}
	},
	"wrong VNI": func(d *debugging) func() {
		return d.restartAs(2, strings.NewReplacer(`"VNI":1`, `"VNI":2`, `"VNI": 1`, `"VNI": 2`))
	},
	"wrong VTEP MAC": func(d *debugging) func() {
		return d.edit(filepath.Join(d.lab.Dir(), "peers.json"), strings.NewReplacer(d.node(2).VtepMAC, "02:00:00:00:00:99"))
	},
	"blocked port": func(d *debugging) func() {
		d.nft("add table inet firewall; add chain inet firewall in { type filter hook input priority 0; }; add rule inet firewall in udp dport 8472 drop")
		return func() { d.nft("delete table inet firewall") }
	},
	"foreign source": func(d *debugging) func() {
		foreign := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 244, 99, 9), Mask: net.CIDRMask(32, 32)}}
		pod := d.node(1).Pods[0].Namespace
		change := func(f func(netlink.Link, *netlink.Addr) error) {
			d.must(lab.In(pod, func() error {
				link, err := netlink.LinkByName("lo")
				if err != nil {
					return err
				}
				return f(link, foreign)
			}))
		}
		change(netlink.AddrAdd)
		return func() { change(netlink.AddrDel) }
	},
}

func (d *debugging) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *debugging) node(number int) lab.Node {
	n, err := d.lab.Node(number)
	d.must(err)
	return n
}

func (d *debugging) nft(script string) {
	d.t.Helper()
	runIn(d.t, d.node(2).Namespace, "nft", script)
}

// edit changes a file of the daemons'.
func (d *debugging) edit(path string, r *strings.Replacer) (undo func()) {
	d.t.Helper()
	old, err := os.ReadFile(path)
	d.must(err)
	write := func(content string) {
		d.must(os.WriteFile(path+".new", []byte(content), 0o644))
		d.must(os.Rename(path+".new", path))
	}
	changed := r.Replace(string(old))
	if changed == string(old) {
		d.t.Fatalf("nothing to change in %s", old)
	}
	write(changed)
	return func() { write(string(old)) }
}

// restartAs runs a node's daemon with its configuration and its list of peers changed.
func (d *debugging) restartAs(number int, r *strings.Replacer) (undo func()) {
	d.t.Helper()
	n := d.node(number)
	args := slices.Clone(n.Args[1:])
	for i, arg := range args[:len(args)-1] {
		if arg == "--config" || arg == "--peers" {
			content, err := os.ReadFile(args[i+1])
			d.must(err)
			args[i+1] = filepath.Join(d.t.TempDir(), filepath.Base(args[i+1]))
			d.must(os.WriteFile(args[i+1], []byte(r.Replace(string(content))), 0o644))
		}
	}
	d.must(d.lab.StopNode(d.t.Context(), number, syscall.SIGTERM))
	cmd := exec.Command(n.Args[0], args...)
	cmd.Env = append(os.Environ(), asTulle+"=1", "GORACE=atexit_sleep_ms=0")
	d.must(lab.In(n.Namespace, cmd.Start))
	stop := func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	}
	d.t.Cleanup(stop) // when the test ends in the middle
	return func() {
		stop()
		d.must(d.lab.StartNode(d.t.Context(), number))
	}
}

// shell is a shell that ends together with all that it runs.
func shell(ctx context.Context, script string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd
}

// run runs a block of the page where its head says: on n1 or n2, or in a pod of theirs, while the first one's pod pings.
func (d *debugging) run(head, script string) string {
	d.t.Helper()
	where, during, _ := strings.Cut(head, " ")
	node := d.node(int(where[len(where)-1] - '0'))
	namespace := node.Namespace
	if strings.HasPrefix(where, "pod") {
		namespace = node.Pods[0].Namespace
	}
	ctx, cancel := context.WithTimeout(d.t.Context(), blockTimeout)
	defer cancel()
	if script, ok := pagePings[during]; ok {
		ping := shell(ctx, script)
		d.must(lab.In(d.node(1).Pods[0].Namespace, ping.Start))
		defer func() { cancel(); ping.Wait() }()
	} else if during != "" {
		d.t.Fatalf("block %q: no such ping", head)
	}
	cmd := shell(ctx, strings.ReplaceAll(script, "/run/n2", d.node(2).RunDir))
	cmd.Env = []string{"PATH=" + d.path + ":/usr/sbin:/usr/bin:/sbin:/bin", "TULLE_RUN_DIR=" + node.RunDir, "LC_ALL=C"}
	var out []byte
	d.must(lab.In(namespace, func() error { out, _ = cmd.CombinedOutput(); return nil })) // what is shown is what counts
	return string(out)
}

// varying are the parts of the output that differ from run to run.
var varying = []struct {
	what *regexp.Regexp
	with string
}{
	{regexp.MustCompile(`[+-]?\d+\.\d+ µs`), "TIME"},
	{regexp.MustCompile(`time=\d+(\.\d+)? ms|time \d+ms|\d+\.\d+(/\d+\.\d+)* ms|path \d+\.\d+ \+ engine \d+\.\d+`), "TIME"},
	{regexp.MustCompile(`([0-9a-f]{2}:){5}[0-9a-f]{2}`), "MAC"},
	{regexp.MustCompile(`flow [0-9a-f]{6,}`), "flow"},
	{regexp.MustCompile(`id \d+ seq \d+`), "echo"},
	{regexp.MustCompile(`icmp_seq=\d+`), "icmp_seq"},
	{regexp.MustCompile(`(192\.168\.77\.\d:)\d{5}\b`), "${1}PORT"},
	{regexp.MustCompile(`(?m)^((?:drop|underlay)\S*)(\s+\d+)+$`), "$1 N"},
	{regexp.MustCompile(`(new|known) flow, \S+`), "flow"},
	{regexp.MustCompile(`(?m)^\d\d:\d\d:\d\d\.\d+`), "CLOCK"},
	{regexp.MustCompile(`worker \d+, packet \d+`), "packet"},
	{regexp.MustCompile(`\d+ received by the filter`), "received"},
	{regexp.MustCompile(`[ \t]+`), " "},
}

func steady(output string) []string {
	for _, v := range varying {
		output = v.what.ReplaceAllString(output, v.with)
	}
	lines := strings.Split(strings.TrimSpace(output), "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return lines
}

// shows says whether an output is that of the page, in which a line of … stands for any number of lines.
func shows(page, output []string) bool {
	if len(page) == 0 {
		return len(output) == 0
	}
	if page[0] != "…" {
		return len(output) > 0 && page[0] == output[0] && shows(page[1:], output[1:])
	}
	for i := range len(output) + 1 {
		if shows(page[1:], output[i:]) {
			return true
		}
	}
	return false
}

// check runs a block until its output is what the page shows: it takes a while until a fault shows everywhere.
func (d *debugging) check(head, script, want string) {
	d.t.Helper()
	var out string
	for range blockTries {
		if out = d.run(head, script); shows(steady(want), steady(out)) {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
	d.t.Errorf("block %q\n%s\nprints\n%s\nand docs/debugging.md shows\n%s", head, script, out, want)
}

// TestDebuggingPage makes each fault of docs/debugging.md, runs the page's commands, and demands the output that stands there.
func TestDebuggingPage(t *testing.T) {
	for program, pkg := range map[string]string{"ping": "iputils-ping", "nft": "nftables"} {
		if _, err := need.Debian(t.Context(), program, pkg); err != nil {
			t.Fatal(err)
		}
	}
	page, err := os.ReadFile("../../docs/debugging.md")
	if err != nil {
		t.Fatal(err)
	}
	d := &debugging{t: t, lab: labUnderTest(t, lab.Config{Nodes: 2, Pods: 1, Store: lab.StoreFile}), path: installTulle(t)}
	found, blocks := map[string]bool{}, 0
	for _, problem := range strings.Split(string(page), "<!-- fault: ")[1:] {
		name, rest, _ := strings.Cut(problem, " -->")
		if faults[name] == nil {
			t.Fatalf("fault %q: the test cannot make it", name)
		}
		found[name] = true
		t.Run(name, func(t *testing.T) {
			d := &debugging{t: t, lab: d.lab, path: d.path}
			undo := faults[name](d)
			blocks += d.blocks(rest)
			undo()
		})
	}
	if len(found) != len(faults) || blocks < 2*len(faults) {
		t.Errorf("%d problems and %d blocks on the page, %d problems known", len(found), blocks, len(faults))
	}
}

// blocks runs all blocks of a problem and returns their number. Each is followed by what it prints.
func (d *debugging) blocks(text string) (n int) {
	d.t.Helper()
	for _, block := range strings.Split(text, "```sh ")[1:] {
		head, rest, _ := strings.Cut(block, "\n")
		script, after, ok := strings.Cut(rest, "\n```\n")
		want, _, okToo := strings.Cut(strings.TrimPrefix(after, "```text\n"), "\n```")
		if !ok || !okToo || !strings.HasPrefix(after, "```text\n") {
			d.t.Fatalf("block %q: no output behind it", head)
		}
		n++
		d.check(head, script, want)
	}
	return n
}
