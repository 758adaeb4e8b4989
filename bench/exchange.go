package bench

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

const exchangeHeader = 8 // sequence number at the start of each payload

// ExchangeResult counts messages; each is one request and its echo, and none is sent twice.
type ExchangeResult struct {
	Sent       int
	Answered   int // right in both directions
	Mismatched int // arrived changed, at either end
}

// Exchange sends count requests of size bytes (8 to 65,507) from client, which is connected to server's address, has server
// echo each, and compares every byte at both ends. The next request goes out when the last has been answered or,
// for either direction, timeout has passed. Loss is no error: an error means that ctx ended or a socket failed.
func Exchange(ctx context.Context, client, server *net.UDPConn, size, count int,
	timeout time.Duration) (ExchangeResult, error) {
	var r ExchangeResult
	if size < exchangeHeader || size > 65507 {
		return r, fmt.Errorf("exchange: %d bytes: must be %d to 65507", size, exchangeHeader)
	}
	want, got := make([]byte, size), make([]byte, 1<<16)
	for seq := range count {
		if err := ctx.Err(); err != nil {
			return r, err
		}
		crand.Read(want)
		binary.BigEndian.PutUint64(want, uint64(seq))
		r.Sent++
		if _, err := client.Write(want); err != nil {
			return r, fmt.Errorf("exchange: send: %w", err)
		}
		n, from, err := await(server, got, uint64(seq), timeout)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		} else if err != nil {
			return r, fmt.Errorf("exchange: receive: %w", err)
		}
		same := bytes.Equal(got[:n], want)
		if _, err := server.WriteToUDP(got[:n], from); err != nil {
			return r, fmt.Errorf("exchange: echo: %w", err)
		}
		n, _, err = await(client, got, uint64(seq), timeout)
		switch {
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			return r, fmt.Errorf("exchange: receive echo: %w", err)
		case !same || err == nil && !bytes.Equal(got[:n], want):
			r.Mismatched++
		case err == nil:
			r.Answered++
		}
	}
	return r, nil
}

// await reads the datagram numbered seq: one with a lower number is the late trace of a message already given up. A number
// from the future or a datagram too short for one is returned, to be found different.
func await(c *net.UDPConn, b []byte, seq uint64, timeout time.Duration) (int, *net.UDPAddr, error) {
	if err := c.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return 0, nil, err
	}
	for {
		n, from, err := c.ReadFromUDP(b)
		if err != nil {
			return 0, nil, err
		}
		if n < exchangeHeader || binary.BigEndian.Uint64(b) >= seq {
			return n, from, nil
		}
	}
}
