package etcd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tulle-net/tulle/control"
)

// attempts bounds how often a lost race for a subnet begins anew before there is time for others.
const attempts = 20

// errLost: somebody else has changed the key since it was read.
var errLost = errors.New("another node was faster")

// secure makes sure that etcd has this node's lease, as it has to be: the subnet that the node has, or one that etcd has for its address
// already, or a new one.
func (s *Store) secure(ctx context.Context) error {
	for range attempts {
		err := s.ensure(ctx)
		if !errors.Is(err, errLost) {
			return err
		}
		if _, err := s.list(ctx); err != nil {
			return err
		}
	}
	return fmt.Errorf("no subnet after %d attempts: %w", attempts, errLost)
}

func (s *Store) ensure(ctx context.Context) error {
	if err := s.withdraw(); err != nil {
		return err
	}
	if s.own == nil {
		if err := s.choose(); err != nil {
			return err
		}
	}
	there := s.leases[s.own.key]
	fresh := there != nil && s.held && there.revision == s.own.revision && there.value == s.own.value
	if fresh {
		return nil
	}
	return s.write(ctx, there)
}

// unsure says whether an event has touched the own lease, so that one has to look.
func (s *Store) unsure() bool {
	there := s.leases[s.own.key]
	return there == nil || there.revision != s.own.revision || s.rival() != nil
}

// rival returns a lease of another node that holds a part of the own subnet.
func (s *Store) rival() *lease {
	for _, l := range s.leases {
		if s.isOwn(l) {
			continue
		}
		for _, subnet := range s.own.subnets() {
			if l.overlaps(subnet) {
				return l
			}
		}
	}
	return nil
}

// withdraw gives the own subnet up if etcd says that it is another node's.
func (s *Store) withdraw() error {
	if s.own == nil {
		if !s.config.Self.Subnet.IsValid() {
			return nil
		}
		own, err := s.want(s.config.Self.Subnet, s.config.Self.IPv6Subnet)
		if err != nil {
			return err
		}
		s.own = own
	}
	rival := s.rival()
	if rival == nil {
		return nil
	}
	err := fmt.Errorf("%s is %s's, by %s%s", s.own.node.Subnet, rival.node.Name, s.prefix, rival.key)
	if s.held {
		s.withdrawn++
		s.config.Log.Error("etcd: the subnet is withdrawn", "error", err)
	}
	s.held, s.own = false, nil
	if s.config.Self.Subnet.IsValid() {
		return err // a given subnet is not replaced by another one
	}
	return nil
}

// choose decides on a subnet: one that etcd has for this node's address, else a free one.
func (s *Store) choose() (err error) {
	for _, l := range s.leases {
		if s.isOwn(l) && s.fits(l.node) {
			s.own, err = s.want(l.node.Subnet, l.node.IPv6Subnet)
			return err
		}
	}
	subnet, err := s.config.Pool.choose(s.taken)
	if err != nil {
		return err
	}
	subnet6, err := s.choose6(subnet)
	if err != nil {
		return err
	}
	s.own, err = s.want(subnet, subnet6)
	return err
}

// choose6 returns the IPv6 block of the same number if it is free, else another one.
func (s *Store) choose6(subnet netip.Prefix) (netip.Prefix, error) {
	pool := s.config.Pool6
	if !pool.Network.IsValid() {
		return netip.Prefix{}, nil
	}
	if same, ok := pool.block(s.config.Pool.number(subnet)); ok && !s.taken(same) {
		return same, nil
	}
	return pool.choose(s.taken)
}

// taken says whether a block is anybody's: what is gone may come back.
func (s *Store) taken(b netip.Prefix) bool {
	for _, l := range s.leases {
		if l.overlaps(b) {
			return true
		}
	}
	for _, g := range s.gone {
		if g.overlaps(b) {
			return true
		}
	}
	if s.config.Reserved == nil {
		return false
	}
	for _, p := range s.config.Reserved() {
		if p.Overlaps(b) {
			return true
		}
	}
	return false
}

// fits says whether the subnets are ones that this node may have.
func (s *Store) fits(n control.Node) bool {
	six := s.config.Pool6
	return s.config.Pool.Fits(n.Subnet) && six.Network.IsValid() == n.IPv6Subnet.IsValid() && (!n.IPv6Subnet.IsValid() || six.Fits(n.IPv6Subnet))
}

// want returns the lease that this node writes for the subnets.
func (s *Store) want(subnet, subnet6 netip.Prefix) (*lease, error) {
	n := s.config.Self
	n.Subnet, n.IPv6Subnet = subnet, subnet6
	value, err := control.LeaseValue(n)
	if err != nil {
		return nil, fmt.Errorf("lease of %s: %w", subnet, err)
	}
	return &lease{key: keyOf(subnet, subnet6), node: n, value: string(value)}, nil
}

// write puts the own lease in place of what is there, nil for nothing. A reservation stays without end.
func (s *Store) write(ctx context.Context, there *lease) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var id clientv3.LeaseID
	options := []clientv3.OpOption{}
	if there == nil || there.id != 0 {
		grant, err := s.client.Grant(ctx, int64(s.config.TTL.Seconds()))
		if err != nil {
			return fmt.Errorf("grant a lease: %w", err)
		}
		id = grant.ID
		options = append(options, clientv3.WithLease(id))
	}
	key, unchanged := s.prefix+s.own.key, int64(0)
	if there != nil {
		unchanged = there.revision
	}
	r, err := s.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", unchanged)).Then(clientv3.OpPut(key, s.own.value, options...)).Commit()
	if err != nil || !r.Succeeded {
		s.revoke(id)
	}
	switch {
	case err != nil:
		return fmt.Errorf("write %s: %w", key, err)
	case !r.Succeeded:
		if !s.held && !s.config.Self.Subnet.IsValid() {
			s.own = nil // it never was this node's
		}
		return errLost
	}
	s.own.revision, s.own.id, s.renewed = r.Header.Revision, int64(id), time.Now()
	s.leases[s.own.key] = s.own
	if !s.held {
		s.config.Log.Info("etcd: this node has its subnet", "subnet", s.own.node.Subnet, "ipv6Subnet", s.own.node.IPv6Subnet, "key", key, "etcdLease", int64(id))
	}
	s.held = true
	return nil
}

// revoke gives a grant back that no key hangs on.
func (s *Store) revoke(id clientv3.LeaseID) {
	if id == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	s.client.Revoke(ctx, id) // without success it ends by itself
}

// renew keeps the etcd lease alive when it is time. One that is gone is known by its key in the next session.
func (s *Store) renew(ctx context.Context) error {
	if s.own.id == 0 || time.Since(s.renewed) < min(s.config.TTL/3, s.config.TTL-s.config.Margin) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := s.client.KeepAliveOnce(ctx, clientv3.LeaseID(s.own.id))
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		s.own.revision = -1 // no key can have that: it is written again
		return fmt.Errorf("the lease has ended: %w", err)
	}
	if err != nil {
		return fmt.Errorf("renew the lease: %w", err)
	}
	s.renewed = time.Now()
	return nil
}

// leave gives the subnet back if that is asked for.
func (s *Store) leave() {
	if !s.leaving.Load() || !s.held {
		return
	}
	key := s.prefix + s.own.key
	s.held = false
	err := s.save()
	if s.client != nil {
		ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
		defer cancel()
		_, errDelete := s.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", s.own.revision)).Then(clientv3.OpDelete(key)).Commit()
		err = errors.Join(err, errDelete)
		s.revoke(clientv3.LeaseID(s.own.id))
	}
	if err != nil {
		s.config.Log.Error("etcd: the subnet is not given back: its lease ends by itself", "key", key, "error", err)
	}
}
