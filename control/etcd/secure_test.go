package etcd

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// An authority issues certificates into a directory.
type authority struct {
	t    *testing.T
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.key = a.newKey()
	a.cert = &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	a.issue("ca", a.cert, a.key)
	return a
}

func (a *authority) newKey() *ecdsa.PrivateKey {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	return key
}

// leaf issues a certificate for loopback, for clients and servers.
func (a *authority) leaf(name string) {
	a.t.Helper()
	a.issue(name, &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}, a.newKey())
}

func (a *authority) issue(name string, cert *x509.Certificate, key *ecdsa.PrivateKey) {
	a.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, cert, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{a.path(name + ".crt"): {Type: "CERTIFICATE", Bytes: der}, a.path(name + ".key"): {Type: "EC PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
}

func (a *authority) path(file string) string { return filepath.Join(a.dir, file) }

// Certificates on both sides, and a user with a password: who has them gets a subnet, who has not is told why.
func TestTLSAndPassword(t *testing.T) {
	ours, other := newAuthority(t, "ours"), newAuthority(t, "other")
	ours.leaf("server")
	ours.leaf("machine") // no user's name: etcd would take a user's from the certificate
	other.leaf("node")
	s := startWith(t, "https", "--cert-file", ours.path("server.crt"), "--key-file", ours.path("server.key"), "--trusted-ca-file", ours.path("ca.crt"), "--client-cert-auth")
	good := Server{Endpoints: []string{s.client}, Prefix: prefix, CAFile: ours.path("ca.crt"), CertFile: ours.path("machine.crt"), KeyFile: ours.path("machine.key")}
	tls, err := good.tls()
	if err != nil {
		t.Fatal(err)
	}
	admin, err := clientv3.New(clientv3.Config{Endpoints: good.Endpoints, TLS: tls, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	ctx := t.Context()
	for _, step := range []func() error{
		func() error { _, err := admin.Put(ctx, prefix+"/config", "{}"); return err },
		func() error { _, err := admin.UserAdd(ctx, "root", "secret"); return err },
		func() error { _, err := admin.RoleAdd(ctx, "root"); return err },
		func() error { _, err := admin.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := admin.UserAdd(ctx, "node", "word"); return err },
		func() error { _, err := admin.RoleAdd(ctx, "network"); return err },
		func() error {
			_, err := admin.RoleGrantPermission(ctx, "network", prefix+"/", clientv3.GetPrefixRangeEnd(prefix+"/"), clientv3.PermissionType(clientv3.PermReadWrite))
			return err
		},
		func() error { _, err := admin.UserGrantRole(ctx, "node", "network"); return err },
		func() error { _, err := admin.AuthEnable(ctx); return err },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	good.Username, good.Password = "node", "word"
	for name, c := range map[string]struct {
		change  func(*Server)
		problem string
	}{
		"right":             {func(*Server) {}, ""},
		"wrong password":    {func(s *Server) { s.Password = "guess" }, "authentication failed"},
		"no user":           {func(s *Server) { s.Username, s.Password = "", "" }, "permission denied"},
		"no certificate":    {func(s *Server) { s.CertFile, s.KeyFile = "", "" }, "certificate required"},
		"another's":         {func(s *Server) { s.CertFile, s.KeyFile = other.path("node.crt"), other.path("node.key") }, "certificate"},
		"another authority": {func(s *Server) { s.CAFile = other.path("ca.crt") }, "certificate signed by unknown authority"},
	} {
		t.Run(name, func(t *testing.T) {
			server := good
			c.change(&server)
			if data, err := server.Network(ctx); c.problem == "" && (err != nil || string(data) != "{}") || c.problem != "" && err == nil {
				t.Errorf("the network's configuration: %q, %v", data, err)
			}
			config := s.config(1)
			config.Server, config.StateDir = server, t.TempDir()
			r := run(t, config)
			if c.problem == "" {
				r.subnet()
				return
			}
			await(t, "the problem", func() bool { return len(r.View().Problems) == 1 })
			if p := r.View().Problems[0]; !strings.Contains(p, c.problem) || r.View().Self.Subnet.IsValid() {
				t.Errorf("%q, want %q; subnet %s", p, c.problem, r.View().Self.Subnet)
			}
		})
	}
	for problem, bad := range map[string]Server{
		"no endpoints":        {},
		"go together":         {Endpoints: good.Endpoints, CertFile: good.CertFile},
		"no PEM certificate":  {Endpoints: good.Endpoints, CAFile: good.KeyFile},
		"no such file":        {Endpoints: good.Endpoints, CAFile: filepath.Join(t.TempDir(), "none")},
		"without a user name": {Endpoints: good.Endpoints, Password: "word"},
	} {
		if err := bad.Check(); err == nil || !strings.Contains(err.Error(), problem) {
			t.Errorf("%+v: %v, want %q", bad, err, problem)
		}
	}
}
