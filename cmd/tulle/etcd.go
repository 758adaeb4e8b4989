package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/tulle-net/tulle/control/atomicfile"
	"github.com/tulle-net/tulle/control/etcd"
	"github.com/tulle-net/tulle/control/netconf"
)

// etcdNetwork is the file, in the state directory, with the network's configuration as etcd had it last.
const etcdNetwork = "etcd-net-conf.json"

// leastTTL leaves time for a node to renew its lease.
const leastTTL = 5 * time.Second

// etcdOptions are the flags of the etcd store, by the names that flanneld has for them.
type etcdOptions struct {
	endpoints, prefix          string
	caFile, certFile, keyFile  string
	username, password, secret string
	ttl, margin                time.Duration
	server                     *etcd.Server // once checked
}

func (o *etcdOptions) register(f *pflag.FlagSet) {
	f.StringVar(&o.endpoints, "etcd-endpoints", "", "etcd servers, URLs separated by commas, such as https://192.0.2.1:2379")
	f.StringVar(&o.prefix, "etcd-prefix", "/coreos.com/network", "what all of the network's keys in etcd begin with; its net-conf.json is at PREFIX/config unless --config is given")
	f.StringVar(&o.caFile, "etcd-cafile", "", "file with the CA certificates of the etcd servers")
	f.StringVar(&o.certFile, "etcd-certfile", "", "file with this node's certificate for etcd")
	f.StringVar(&o.keyFile, "etcd-keyfile", "", "file with the key of that certificate")
	f.StringVar(&o.username, "etcd-username", "", "user name for etcd")
	f.StringVar(&o.password, "etcd-password", "", "password for etcd; who lists processes can see it: better in TULLE_ETCD_PASSWORD or --etcd-password-file")
	f.StringVar(&o.secret, "etcd-password-file", "", "file with the password for etcd")
	f.DurationVar(&o.ttl, "subnet-lease-ttl", etcd.DefaultTTL, "how long etcd keeps the subnet of a node that is gone, as flannel does")
	f.DurationVar(&o.margin, "subnet-lease-renew-margin", etcd.DefaultMargin, "how long before the end of its lease in etcd a node renews it at the latest")
}

// check reads the files and makes o.server.
func (o *etcdOptions) check() error {
	s := &etcd.Server{Prefix: strings.TrimRight(o.prefix, "/"), CAFile: o.caFile, CertFile: o.certFile, KeyFile: o.keyFile, Username: o.username, Password: o.password}
	for endpoint := range strings.SplitSeq(o.endpoints, ",") {
		if endpoint = strings.TrimSpace(endpoint); endpoint != "" {
			s.Endpoints = append(s.Endpoints, endpoint)
		}
	}
	if o.secret != "" {
		if o.password != "" {
			return usageError("--etcd-password and --etcd-password-file exclude each other")
		}
		b, err := os.ReadFile(o.secret)
		if err != nil {
			return fmt.Errorf("--etcd-password-file: %w", err)
		}
		s.Password = strings.TrimRight(string(b), "\r\n")
	}
	switch {
	case len(s.Endpoints) == 0:
		return usageError("--store etcd: --etcd-endpoints is missing, such as --etcd-endpoints http://192.0.2.1:2379")
	case o.ttl < leastTTL:
		return usageError("--subnet-lease-ttl %v: out of range (allowed: %v and more)", o.ttl, leastTTL)
	case o.margin <= 0 || o.margin >= o.ttl:
		return usageError("--subnet-lease-renew-margin %v: out of range (allowed: above 0, below --subnet-lease-ttl, %v)", o.margin, o.ttl)
	}
	o.server = s
	return s.Check()
}

// network reads the network's configuration. Where etcd does not answer, it is what etcd had last: a node starts without it.
func (o *etcdOptions) network(stateDir string) (*netconf.Config, error) {
	from, kept := "etcd "+o.server.Prefix+"/config", filepath.Join(stateDir, etcdNetwork)
	data, err := o.server.Network(context.Background())
	if errors.Is(err, etcd.ErrNoConfig) {
		return nil, err
	}
	fresh := err == nil
	if !fresh {
		old, errKept := os.ReadFile(kept)
		if errors.Is(errKept, fs.ErrNotExist) {
			return nil, err
		}
		if errKept != nil {
			return nil, errors.Join(err, errKept)
		}
		slog.Warn("etcd does not answer: the network is configured as it was last", "error", err, "file", kept)
		data, from = old, kept
	}
	conf, warnings, err := netconf.Parse(from, data)
	for _, w := range warnings {
		slog.Warn(w.String())
	}
	if err == nil {
		err = runnable(from, conf)
	}
	if err != nil || !fresh {
		return conf, err
	}
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	return conf, atomicfile.Write(kept, data, 0o600)
}
