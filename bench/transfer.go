package bench

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

const chunk = 1 << 20 // bytes hashed and written at a time

// TransferResult is what both ends of a Transfer saw.
type TransferResult struct {
	Sent        int64 // bytes
	Received    int64 // bytes
	SentSum     [sha256.Size]byte
	ReceivedSum [sha256.Size]byte
	Duration    time.Duration // from the first write to the end of the stream at the receiver
}

// Gbps is the rate of received payload in 10^9 bits a second.
func (r TransferResult) Gbps() float64 {
	if r.Duration <= 0 {
		return 0
	}
	return float64(r.Received) * 8 / r.Duration.Seconds() / 1e9
}

// Transfer streams n bytes of src from tx to rx, the two ends of one connection, and hashes them at both ends as they pass.
// It closes tx for writing, or altogether if that cannot be done, so that rx sees the end of the stream. ctx bounds
// it. The error is nil iff all n bytes arrived, no more, with equal sums.
func Transfer(ctx context.Context, src io.Reader, n int64, tx, rx net.Conn) (TransferResult, error) {
	stop := context.AfterFunc(ctx, func() {
		tx.SetDeadline(time.Unix(1, 0))
		rx.SetDeadline(time.Unix(1, 0))
	})
	defer stop()
	var r TransferResult
	start := time.Now()
	sent := make(chan error, 1)
	go func() {
		var err error
		r.Sent, r.SentSum, err = send(tx, io.LimitReader(src, n))
		if err != nil {
			rx.SetReadDeadline(time.Unix(1, 0)) // nothing more will come
		}
		sent <- err
	}()
	var errRx error
	r.Received, r.ReceivedSum, errRx = drain(rx)
	r.Duration = time.Since(start)
	if errRx != nil {
		tx.SetWriteDeadline(time.Unix(1, 0)) // nobody takes it any more
	}
	errTx := <-sent
	switch {
	case ctx.Err() != nil:
		return r, fmt.Errorf("transfer: %d of %d bytes arrived: %w", r.Received, n, ctx.Err())
	case errTx != nil || errRx != nil:
		return r, fmt.Errorf("transfer: %d of %d bytes arrived: %w", r.Received, n, errors.Join(errTx, errRx))
	case r.Sent != n || r.Received != n:
		return r, fmt.Errorf("transfer: %d of %d bytes sent, %d arrived", r.Sent, n, r.Received)
	case r.SentSum != r.ReceivedSum:
		return r, fmt.Errorf("transfer: sent SHA-256 %x, received %x", r.SentSum, r.ReceivedSum)
	}
	return r, nil
}

func send(tx net.Conn, src io.Reader) (n int64, sum [sha256.Size]byte, err error) {
	h := sha256.New()
	b := make([]byte, chunk)
	n, err = io.CopyBuffer(onlyWriter{io.MultiWriter(h, tx)}, src, b)
	if err != nil {
		return n, sum, fmt.Errorf("send: %w", err)
	}
	if half, ok := tx.(interface{ CloseWrite() error }); ok {
		err = half.CloseWrite()
	} else {
		err = tx.Close()
	}
	return n, [sha256.Size]byte(h.Sum(nil)), err
}

func drain(rx net.Conn) (n int64, sum [sha256.Size]byte, err error) {
	h := sha256.New()
	n, err = io.CopyBuffer(h, struct{ io.Reader }{rx}, make([]byte, chunk))
	if err != nil {
		err = fmt.Errorf("receive: %w", err)
	}
	return n, [sha256.Size]byte(h.Sum(nil)), err
}

// onlyWriter keeps io.CopyBuffer from finding a shortcut around its buffer.
type onlyWriter struct{ io.Writer }
