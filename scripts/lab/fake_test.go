package lab

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// fakeConfig is a lab whose daemons are this test binary: they answer status and carry nothing. It tests how the lab
// handles processes and what it does with their answers, nothing else.
func fakeConfig(dir, store string) Config {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return Config{Dir: dir, Nodes: 3, Pods: 2, Kernel: map[int]bool{3: true}, Store: store, Executable: self,
		Env: []string{roleVariable + "=daemon", "GORACE=atexit_sleep_ms=0"}, Progress: os.Stderr}
}

// fakeDaemon is what a fake writes into its run directory.
type fakeDaemon struct {
	Process process
	Subnet  string
	Subnet6 string // empty unless the configuration has IPv6
	Args    []string
}

// daemonRole is `tulle node`, `tulle status` and `tulle keygen` as far as the lab knows them. In the lab's directory, the
// file "crash" makes the daemon end at its start, "stubborn" makes it ignore SIGTERM, "mute" keeps it without a subnet, and
// "fickle" gives it another subnet than last time.
func daemonRole() int {
	flags := map[string]string{}
	for i := 2; i+1 < len(os.Args); i += 2 {
		flags[os.Args[i]] = os.Args[i+1]
	}
	switch runDir := flags["--run-dir"]; os.Args[1] {
	case "keygen":
		fmt.Println("a key")
		return 0
	case "status":
		return fakeStatus(runDir)
	case "node":
		return fakeNode(runDir, flags)
	}
	return 2
}

func fakeNode(runDir string, flags map[string]string) int {
	has := func(name string) bool {
		_, err := os.Stat(filepath.Join(filepath.Dir(filepath.Dir(runDir)), name))
		return err == nil
	}
	if has("crash") {
		fmt.Fprintln(os.Stderr, "fake daemon: crash was asked for")
		return 1
	}
	if has("stubborn") {
		signal.Ignore(syscall.SIGTERM)
	}
	self, _ := identify(os.Getpid())
	d := fakeDaemon{Process: self, Args: os.Args}
	d.Subnet, d.Subnet6, _ = strings.Cut(flags["--subnet"], ",")
	if d.Subnet == "" && !has("mute") {
		d.Subnet = fakeClaim(flags["--name"], has("fickle"))
	}
	var conf netConf
	text, _ := os.ReadFile(flags["--config"])
	if json.Unmarshal(text, &conf); conf.EnableIPv6 && d.Subnet6 == "" {
		d.Subnet6 = fakeSubnet6(d.Subnet)
	}
	if err := writeJSON(filepath.Join(runDir, "alive"), d); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	time.Sleep(10 * time.Minute)
	return 0
}

func fakeClaim(name string, other bool) string {
	var number int
	fmt.Sscanf(name, "n%d", &number)
	if other {
		number += 50
	}
	return fmt.Sprintf("10.244.%d.0/24", 100+number)
}

// fakeSubnet6 has the place of an IPv4 subnet.
func fakeSubnet6(subnet string) string {
	p, err := netip.ParsePrefix(subnet)
	if err != nil {
		return ""
	}
	return ipv6.subnetAt(int(p.Addr().As4()[2])).String()
}

func readFake(runDir string) (d fakeDaemon, alive bool) {
	b, err := os.ReadFile(filepath.Join(runDir, "alive"))
	return d, err == nil && json.Unmarshal(b, &d) == nil && d.Process.alive()
}

// fakeStatus knows as peers whoever is in the peers file, if the daemon was given one, and, in a lab on gossip, whose daemon
// lives.
func fakeStatus(runDir string) int {
	self, alive := readFake(runDir)
	if !alive {
		return 3
	}
	dir := filepath.Dir(filepath.Dir(runDir))
	line := strings.Join(self.Args, " ")
	var peers []peer
	if strings.Contains(line, "--peers") {
		b, _ := os.ReadFile(peersPath(dir))
		json.Unmarshal(b, &peers)
	}
	others, _ := filepath.Glob(filepath.Join(dir, "n*", "run"))
	for _, other := range others {
		if d, alive := readFake(other); alive && strings.Contains(line, "--join") {
			peers = append(peers, peer{Subnet: d.Subnet, IPv6Subnet: d.Subnet6})
		}
	}
	var known []string
	for _, p := range peers {
		known = append(known, fmt.Sprintf(`{"subnet":%q,"ipv6Subnet":%q,"routable":true}`, p.Subnet, p.IPv6Subnet))
	}
	pid := self.Process.PID
	fmt.Printf(`{"node":{"subnet":%q,"ipv6Subnet":%q,"vtepMAC":"02:00:00:%02x:%02x:%02x"},"peers":[%s]}`,
		self.Subnet, self.Subnet6, pid>>16&0xff, pid>>8&0xff, pid&0xff, strings.Join(known, ","))
	return 0
}
