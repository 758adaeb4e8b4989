package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/scripts/lab"
	"github.com/tulle-net/tulle/scripts/need"
)

const etcdPrefix = "/coreos.com/network"

// An etcdServer runs in a node's namespace, at the node's address.
type etcdServer struct {
	t       *testing.T
	path    string
	data    string
	node    lab.Node
	process *exec.Cmd
}

func (e *etcdServer) url() string { return "http://" + e.node.PublicIP.String() + ":2379" }

func (e *etcdServer) start() {
	e.t.Helper()
	e.process = exec.Command(e.path, need.EtcdArgs(e.data, e.url(), "http://127.0.0.1:2380")...)
	e.process.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in(e.t, e.node, e.process.Start)
	for range 500 {
		if c, err := e.dial(e.t.Context(), e.node.PublicIP.String()+":2379"); err == nil {
			c.Close()
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	e.t.Fatal("etcd does not answer")
}

func (e *etcdServer) stop() {
	if e.process != nil {
		e.process.Process.Kill()
		e.process.Wait()
		e.process = nil
	}
}

func (e *etcdServer) wipe() {
	e.t.Helper()
	e.stop()
	if err := os.RemoveAll(e.data); err != nil {
		e.t.Fatal(err)
	}
}

// dial connects from inside the node's namespace.
func (e *etcdServer) dial(_ context.Context, addr string) (c net.Conn, err error) {
	err = lab.In(e.node.Namespace, func() (err error) {
		c, err = net.DialTimeout("tcp", addr, time.Second)
		return err
	})
	return c, err
}

// put writes as somebody else would: the network's configuration, and the lease of the node without a daemon as its flanneld has it.
func (e *etcdServer) put() {
	e.t.Helper()
	client := e.client()
	defer client.Close()
	key := strings.ReplaceAll(e.node.Subnet.String(), "/", "-")
	for key, value := range map[string]string{
		"/config":         `{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "VNI": 1}}`,
		"/subnets/" + key: fmt.Sprintf(`{"PublicIP":"%s","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"%s"}}`, e.node.PublicIP, e.node.VtepMAC),
	} {
		if _, err := client.Put(e.t.Context(), etcdPrefix+key, value); err != nil {
			e.t.Fatal(err)
		}
	}
}

func (e *etcdServer) client() *clientv3.Client {
	e.t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{e.url()}, DialOptions: []grpc.DialOption{grpc.WithContextDialer(e.dial)}, Logger: zap.NewNop()})
	if err != nil {
		e.t.Fatal(err)
	}
	return c
}

// leases are the keys of subnets with the address that each one names.
func (e *etcdServer) leases() map[string]string {
	e.t.Helper()
	client := e.client()
	defer client.Close()
	got, err := client.Get(e.t.Context(), etcdPrefix+"/subnets/", clientv3.WithPrefix())
	if err != nil {
		e.t.Fatal(err)
	}
	all := map[string]string{}
	for _, kv := range got.Kvs {
		var v struct{ PublicIP string }
		if err := json.Unmarshal(kv.Value, &v); err != nil {
			e.t.Fatal(err)
		}
		all[strings.TrimPrefix(string(kv.Key), etcdPrefix+"/subnets/")] = v.PublicIP
	}
	return all
}

// TestEtcd runs two tulle nodes and a kernel VXLAN node with a lease in flannel's schema on one etcd. It stops for longer than a lease, and
// loses everything: traffic goes on, and all have their subnets again.
func TestEtcd(t *testing.T) {
	path, err := need.Etcd(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	e := &etcdServer{t: t, path: path, data: filepath.Join(t.TempDir(), "data")}
	t.Cleanup(e.stop)
	l := labUnderTest(t, lab.Config{
		Nodes: 3, Pods: 1, Kernel: map[int]bool{3: true}, Store: lab.StoreEtcd,
		NodeArgs: []string{"--etcd-endpoints", "http://192.168.77.3:2379", "--subnet-lease-ttl", "5s", "--subnet-lease-renew-margin", "2s"},
		Prepare: func(nodes []lab.Node) error {
			e.node = nodes[2]
			e.start()
			e.put()
			return nil
		},
	})
	before := e.leases()
	for _, n := range l.Nodes() {
		if key := strings.ReplaceAll(n.Subnet.String(), "/", "-"); before[key] != n.PublicIP.String() {
			t.Errorf("etcd has %v, %s has %s", before, n.Name, n.Subnet)
		}
	}
	for _, pair := range [][2]int{{1, 2}, {2, 1}, {1, 3}, {3, 2}} {
		transfer(t, between(l, pair[0], pair[1]), 4<<20)
	}
	healthy := func(r *statusReport) bool {
		return r.Node.Store == "etcd" && len(r.Problems) == 0 && len(r.Peers) == 2 && r.Peers[0].State != "gone" && r.Peers[1].State != "gone"
	}
	outage := func(what string, stop func()) {
		t.Helper()
		pings := make(chan bench.PingResult, 3)
		for _, pair := range [][2]int{{1, 2}, {2, 3}, {3, 1}} {
			go func() {
				pings <- ping(t, between(l, pair[0], pair[1]), bench.Ping{Count: 600, Interval: 20 * time.Millisecond, Timeout: 2 * time.Second})
			}()
		}
		stop()
		for number := 1; number <= 2; number++ {
			awaitNode(t, l, number, func(r *statusReport) bool {
				return len(r.Problems) == 1 && strings.HasPrefix(r.Problems[0], "etcd: ") && r.Peers[0].Routable && r.Peers[1].Routable
			})
		}
		time.Sleep(6 * time.Second) // longer than a lease
		e.start()
		if what == "wiped" {
			e.put()
		}
		for number := 1; number <= 2; number++ {
			awaitNode(t, l, number, healthy)
		}
		if after := e.leases(); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("%s: etcd had %v, has %v", what, before, after)
		}
		for range 3 {
			if r := <-pings; r.Lost() != 0 || r.Duplicates != 0 || r.Corrupt != 0 {
				t.Errorf("%s: %+v", what, r)
			}
		}
	}
	outage("stopped", e.stop)
	outage("wiped", e.wipe)
	out, _, code := tulleOn(t, l, 1, "subnets")
	if code != 0 || !strings.Contains(out, "reserved") || strings.Count(out, "leased") != 2 {
		t.Errorf("tulle subnets: %d\n%s", code, out)
	}
	if _, errOut, code := tulleOn(t, l, 1, "forget", "192.168.77.2"); code != 1 || !strings.Contains(errOut, etcdPrefix+"/subnets/") {
		t.Errorf("tulle forget: %d, %s", code, errOut)
	}
	checkLeaves(t, l, e)
}

// checkLeaves lets a node give its subnet back.
func checkLeaves(t *testing.T, l *lab.Lab, e *etcdServer) {
	t.Helper()
	subnet := l.Nodes()[1].Subnet.String()
	if _, errOut, code := tulleOn(t, l, 2, "leave"); code != 0 {
		t.Fatalf("tulle leave: %s", errOut)
	}
	for range 100 {
		if _, there := e.leases()[strings.ReplaceAll(subnet, "/", "-")]; !there && !l.Nodes()[1].Alive {
			if err := l.RemoveNode(t.Context(), 2, syscall.SIGKILL); err != nil { // its daemon is gone already
				t.Fatal(err)
			}
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("%s is still leased after tulle leave", subnet)
}

// awaitNode waits until a node's status is as it has to be.
func awaitNode(t *testing.T, l *lab.Lab, number int, ok func(*statusReport) bool) {
	t.Helper()
	for range 600 {
		if ok(status(t, l, number)) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	r := status(t, l, number)
	t.Fatalf("node %d: problems %q, peers %+v", number, r.Problems, r.Peers)
}
