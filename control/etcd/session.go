package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tulle-net/tulle/control"
)

const (
	tick   = 200 * time.Millisecond // between two looks whether a time has come
	resync = 5 * time.Minute        // between two looks at everything
)

// session lists everything, makes sure of the own lease, and follows what changes. It returns nil when everything is to be listed again.
func (s *Store) session(ctx context.Context, update func(control.View)) (err error) {
	if s.client == nil {
		if s.client, err = s.config.Server.dial(); err != nil {
			return err
		}
	}
	revision, err := s.list(ctx)
	if err == nil {
		err = s.secure(ctx)
	}
	if err != nil {
		return err
	}
	if s.trouble != nil {
		s.config.Log.Info("etcd: answers again")
	}
	s.trouble = nil
	s.publish(update)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return s.follow(ctx, revision, update)
}

// follow takes events from behind a revision.
func (s *Store) follow(ctx context.Context, revision int64, update func(control.View)) error {
	events := s.client.Watch(clientv3.WithRequireLeader(ctx), s.prefix, clientv3.WithPrefix(), clientv3.WithRev(revision+1))
	ticker, probe := time.NewTicker(tick), time.NewTicker(s.config.Probe)
	defer ticker.Stop()
	defer probe.Stop()
	for until := time.Now().Add(resync); time.Now().Before(until); {
		select {
		case <-ctx.Done():
			return nil
		case r, ok := <-events:
			switch {
			case !ok:
				return errors.New("the watch ended")
			case r.CompactRevision > 0:
				return nil // history is gone up to there: list again
			case r.Err() != nil:
				return fmt.Errorf("watch: %w", r.Err())
			}
			for _, e := range r.Events {
				s.take(e)
			}
			if s.unsure() {
				return nil
			}
			revision = max(revision, r.Header.Revision)
		case <-probe.C:
			if same, err := s.probe(ctx, revision); err != nil || !same {
				return err
			}
		case <-ticker.C:
			if err := s.renew(ctx); err != nil {
				return err
			}
			if len(s.gone) == 0 {
				continue // nothing ends by itself
			}
		}
		s.expire(time.Now())
		s.publish(update)
	}
	return nil
}

// probe asks whether etcd answers, and has a history that goes on from the revision: a watch would wait in vain in another one.
func (s *Store) probe(ctx context.Context, revision int64) (same bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	r, err := s.client.Get(ctx, s.prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return false, err
	}
	return r.Header.ClusterId == s.cluster && r.Header.Revision >= revision, nil
}

// list learns all leases, and returns the revision as of which.
func (s *Store) list(ctx context.Context) (revision int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	r, err := s.client.Get(ctx, s.prefix, clientv3.WithPrefix())
	if err != nil {
		return 0, fmt.Errorf("list %s: %w", s.prefix, err)
	}
	if s.cluster != 0 && s.cluster != r.Header.ClusterId {
		s.config.Log.Warn("etcd: it is another cluster, or was made anew: subnets are leased again, the peers stay meanwhile", "prefix", s.prefix)
	}
	s.cluster = r.Header.ClusterId
	there := map[string]bool{}
	for _, kv := range r.Kvs {
		there[string(kv.Key)[len(s.prefix):]] = true
		s.put(string(kv.Key), kv.Value, kv.ModRevision, kv.Lease)
	}
	for key := range s.leases {
		if !there[key] {
			s.remove(key)
		}
	}
	for key := range s.refused {
		if !there[key] {
			delete(s.refused, key)
		}
	}
	s.expire(time.Now())
	return r.Header.Revision, nil
}

func (s *Store) take(e *clientv3.Event) {
	if e.Type == clientv3.EventTypeDelete {
		key := string(e.Kv.Key)[len(s.prefix):]
		delete(s.refused, key)
		s.remove(key)
		return
	}
	s.put(string(e.Kv.Key), e.Kv.Value, e.Kv.ModRevision, e.Kv.Lease)
}

// put learns one lease. What is none changes nothing: what the key said before stays.
func (s *Store) put(fullKey string, value []byte, revision, id int64) {
	key := fullKey[len(s.prefix):]
	l, err := parseLease(key, value, revision, id)
	if err != nil {
		if s.refused[key] != err.Error() {
			s.refusals++
			s.refused[key] = err.Error()
			s.config.Log.Warn("etcd: no lease that this node understands; ignored", "key", fullKey, "error", err)
		}
		return
	}
	delete(s.refused, key)
	delete(s.gone, key)
	s.leases[key] = l
}

// remove notes that etcd has a lease no more.
func (s *Store) remove(key string) {
	l := s.leases[key]
	if l == nil {
		return
	}
	delete(s.leases, key)
	if !s.isOwn(l) {
		s.gone[key] = goneLease{l, time.Now()}
	}
}

// expire forgets leases that are gone for long enough, or whose subnet somebody has now: them or another node. A node that took another
// subnet is there already.
func (s *Store) expire(now time.Time) {
	for key, g := range s.gone {
		if now.Sub(g.since) >= s.config.Grace || s.replaced(g.lease) {
			delete(s.gone, key)
		}
	}
}

func (s *Store) replaced(g *lease) bool {
	for _, l := range s.leases {
		if l.node.PublicIP == g.node.PublicIP {
			return true
		}
		for _, subnet := range g.subnets() {
			if l.overlaps(subnet) {
				return true
			}
		}
	}
	return false
}
