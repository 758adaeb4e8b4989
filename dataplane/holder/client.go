package holder

import (
	"errors"
	"fmt"
	"net"
	"time"
)

// A Client is a connection to a holder. It is used by one goroutine, but for Close.
type Client struct {
	conn *net.UnixConn
	recv *receiver
}

// Dial connects to the holder that serves path. It refuses one that is neither root's nor this user's.
func Dial(path string) (*Client, error) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("holder: %w", err)
	}
	if !Trusted(conn) {
		conn.Close()
		return nil, fmt.Errorf("holder: whoever serves %s is neither root's nor of this user", path)
	}
	return &Client{conn: conn, recv: newReceiver(conn)}, nil
}

// Keep makes the set the one that is held. When it returns nil the holder has copies of all of its descriptors, and has closed those of the
// set before; after an error it has the one before or the new one, whole. The set stays the caller's.
func (c *Client) Keep(s Set) error {
	if err := checkSize(len(s.Meta), len(s.Files)); err != nil {
		return fmt.Errorf("keep: %w", err)
	}
	_, err := c.ask("keep", opKeep, s, opDone)
	return err
}

// Take returns copies of the set that is held, which goes on being held. The error is ErrEmpty when there is none.
func (c *Client) Take() (Set, error) { return c.ask("take", opTake, Set{}, opSet) }

// Drop makes the holder close what it holds.
func (c *Client) Drop() error {
	_, err := c.ask("drop", opDrop, Set{}, opDone)
	return err
}

// Lost returns when the holder is gone, or after Close.
func (c *Client) Lost() {
	_, s, _ := c.recv.receive(func() error { return nil })
	s.Close()
}

// Close hangs up.
func (c *Client) Close() error { return c.conn.Close() }

func (c *Client) ask(what string, op operation, s Set, want operation) (Set, error) {
	// A holder that is stopped or stuck must not keep its daemon from its work.
	if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return Set{}, fmt.Errorf("%s: %w", what, err)
	}
	sent := send(c.conn, op, s)
	got, answer, err := c.recv.receive(func() error { return nil })
	if err == nil && got != want {
		err = refusal(got, answer)
		answer.Close()
	}
	if err != nil {
		return Set{}, fmt.Errorf("%s: %w", what, errors.Join(err, sent))
	}
	return answer, c.conn.SetDeadline(time.Time{})
}

func refusal(op operation, s Set) error {
	switch op {
	case opEmpty:
		return ErrEmpty
	case opRefused:
		return fmt.Errorf("the holder refused: %s", s.Meta)
	}
	return fmt.Errorf("the holder answered with operation %d", op)
}
