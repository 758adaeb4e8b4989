package etcd

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// requestTimeout bounds one request. keepAlive finds out within a few seconds that a server on the other end of a connection is gone.
const (
	requestTimeout = 5 * time.Second
	keepAlive      = 3 * time.Second
)

// A Server says how etcd is reached. The names of its fields are those of flanneld's flags.
type Server struct {
	Endpoints                 []string // such as http://192.0.2.1:2379
	Prefix                    string   // of all keys, such as /coreos.com/network
	CAFile, CertFile, KeyFile string
	Username, Password        string
}

// Check says what is wrong with it, and reads the files.
func (s Server) Check() error {
	_, err := s.tls()
	switch {
	case len(s.Endpoints) == 0:
		return errors.New("etcd: no endpoints")
	case (s.CertFile == "") != (s.KeyFile == ""):
		return errors.New("etcd: a certificate and its key go together")
	case s.Username == "" && s.Password != "":
		return errors.New("etcd: a password without a user name")
	}
	return err
}

// dial makes a client. With a user it asks the server for a token, so it fails while there is none.
func (s Server) dial() (*clientv3.Client, error) {
	config, err := s.tls()
	if err != nil {
		return nil, err
	}
	c, err := clientv3.New(clientv3.Config{
		Endpoints: s.Endpoints, TLS: config, Username: s.Username, Password: s.Password,
		DialTimeout: requestTimeout, DialKeepAliveTime: keepAlive, DialKeepAliveTimeout: keepAlive, PermitWithoutStream: true,
		Logger: zap.NewNop(),
	})
	if err != nil {
		return nil, s.explain(err)
	}
	return c, nil
}

// explain adds to an error that only says that time is up what keeps a connection from being made: the client tries again and again and
// does not tell.
func (s Server) explain(err error) error {
	if !errors.Is(err, context.DeadlineExceeded) && status.Code(err) != codes.DeadlineExceeded {
		return err
	}
	for _, endpoint := range s.Endpoints {
		if why := s.tryConnect(endpoint); why != nil {
			return fmt.Errorf("%s: %w", endpoint, why)
		}
	}
	return fmt.Errorf("no answer within %v: %w", requestTimeout, err)
}

// tryConnect says what goes wrong on the way to an endpoint, before anything of etcd's.
func (s Server) tryConnect(endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil {
		return err
	}
	conn, err := net.DialTimeout("tcp", u.Host, requestTimeout/5)
	if err != nil {
		return err
	}
	defer conn.Close()
	if u.Scheme != "https" {
		return nil
	}
	config, err := s.tls()
	if err != nil {
		return err
	}
	config = cmp.Or(config, &tls.Config{MinVersion: tls.VersionTLS12})
	config.ServerName = u.Hostname()
	conn.SetDeadline(time.Now().Add(requestTimeout / 5))
	secure := tls.Client(conn, config)
	if err := secure.Handshake(); err != nil {
		return err
	}
	_, err = secure.Read(make([]byte, 1)) // a refusal of the client's certificate comes behind the handshake (RFC 8446)
	if ne, ok := err.(net.Error); ok && ne.Timeout() || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// tls returns nil without any of the files.
func (s Server) tls() (*tls.Config, error) {
	if s.CAFile == "" && s.CertFile == "" {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.CAFile != "" {
		pem, err := os.ReadFile(s.CAFile)
		if err != nil {
			return nil, fmt.Errorf("etcd: CA: %w", err)
		}
		if c.RootCAs = x509.NewCertPool(); !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("etcd: CA %s: no PEM certificate in it", s.CAFile)
		}
	}
	if s.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(s.CertFile, s.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("etcd: certificate: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// ErrNoConfig: etcd answers, and has no network of this prefix.
var ErrNoConfig = errors.New("etcd: the network has no configuration")

// Network reads the configuration of the network, flannel's net-conf.json, from PREFIX/config.
func (s Server) Network(ctx context.Context) ([]byte, error) {
	c, err := s.dial()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	r, err := c.Get(ctx, s.Prefix+"/config")
	if err != nil {
		return nil, fmt.Errorf("etcd: read %s/config: %w", s.Prefix, s.explain(err))
	}
	if len(r.Kvs) == 0 {
		return nil, fmt.Errorf("%w: put it there, such as etcdctl put %s/config '%s'", ErrNoConfig, s.Prefix, `{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}`)
	}
	return r.Kvs[0].Value, nil
}
