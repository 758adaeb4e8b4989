package gate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
)

// A stream carries one message each way, as memberlist uses it. Who dialed sends the label before it.
type stream struct {
	net.Conn
	gate    *Gate
	dialed  bool
	labeled bool      // the label went out
	in      io.Reader // of the message that came; nil before it was read
	failed  error
	reply   *key // that the message was sealed with
	once    sync.Once
	left    func()
}

func (s *stream) Close() error {
	s.once.Do(s.left)
	return s.Conn.Close()
}

// Read reads the whole message before it hands anything over, since only a whole one is known to be good.
func (s *stream) Read(b []byte) (int, error) {
	if s.in == nil && s.failed == nil {
		if s.in, s.failed = s.receive(); s.failed != nil {
			s.fail()
		}
	}
	if s.failed != nil {
		return 0, s.failed
	}
	return s.in.Read(b)
}

// fail counts what was refused and tells the other end, if it is of this network. Who dialed sees the error and counts it himself, if it
// is about keys.
func (s *stream) fail() {
	var no *refusal
	if !errors.As(s.failed, &no) {
		return
	}
	if !s.dialed || no.reason != Key {
		s.gate.refuse(no, s.RemoteAddr())
	}
	if !s.dialed && no.reason != Network {
		_, _ = s.Write(errorMessage(no.words))
	}
}

// errorMessage is memberlist's message of an error: a MessagePack map of one string.
func errorMessage(words string) []byte {
	b := append([]byte{kindError, 0x81, 0xa5}, "Error"...)
	b = binary.BigEndian.AppendUint16(append(b, 0xda), uint16(len(words)))
	return append(b, words...)
}

func (s *stream) receive() (io.Reader, error) {
	if !s.dialed {
		if err := s.readLabel(); err != nil {
			return nil, err
		}
	}
	var kind [1]byte
	if _, err := io.ReadFull(s.Conn, kind[:]); err != nil {
		return nil, cut(err, !s.dialed)
	}
	if s.gate.config.Keys == nil {
		return s.receivePlain(kind[0])
	}
	if kind[0] != kindEncrypted {
		return nil, refused(Key, "it sends plaintext: it has no cluster key (encryption is configured but remote state is not encrypted)")
	}
	plain, err := s.receiveSealed()
	if err != nil {
		return nil, err
	}
	if no := checkKind(plain[0]); no != nil {
		return nil, no
	}
	return bytes.NewReader(plain), nil
}

// receivePlain takes a message without encryption, whose length nobody says.
func (s *stream) receivePlain(kind byte) (io.Reader, error) {
	if kind == kindEncrypted {
		return nil, refused(Key, "it encrypts, and this node has no cluster key (remote state is encrypted and encryption is not configured)")
	}
	if no := checkKind(kind); no != nil {
		return nil, no
	}
	return io.MultiReader(bytes.NewReader([]byte{kind}), io.LimitReader(s.Conn, maxMessage)), nil
}

func checkKind(kind byte) *refusal {
	switch {
	case kind == kindCompressed:
		return refused(Compressed, "it compresses, which no node does")
	case kind > kindLast || kind == kindEncrypted || kind == kindCRC || kind == kindCompound:
		return refused(Malformed, "a message of kind %d", kind)
	}
	return nil
}

// receiveSealed reads length and sealed message. Memory grows with what comes, not with what the length says.
func (s *stream) receiveSealed() ([]byte, error) {
	head := [5]byte{kindEncrypted}
	if _, err := io.ReadFull(s.Conn, head[1:]); err != nil {
		return nil, cut(err, true)
	}
	size := binary.BigEndian.Uint32(head[1:])
	if size > maxMessage {
		return nil, refused(Oversized, "a message of %d bytes", size)
	}
	var sealed bytes.Buffer
	if _, err := io.CopyN(&sealed, s.Conn, int64(size)); err != nil {
		return nil, cut(err, true)
	}
	plain, with, no := s.gate.config.Keys.open(sealed.Bytes(), append(head[:], s.gate.config.Label...), &s.gate.seen)
	if no != nil {
		return nil, no
	}
	s.reply = &with
	return plain, nil
}

// readLabel reads the label of this network. A connection that ends without a word is nothing to note.
func (s *stream) readLabel() error {
	var head [2]byte
	if _, err := io.ReadFull(s.Conn, head[:1]); err != nil {
		return err
	}
	if head[0] != kindLabel {
		return refused(Network, otherNetwork)
	}
	if _, err := io.ReadFull(s.Conn, head[1:]); err != nil {
		return cut(err, true)
	}
	label := make([]byte, head[1])
	if _, err := io.ReadFull(s.Conn, label); err != nil {
		return cut(err, true)
	}
	if string(label) != s.gate.config.Label {
		return refused(Network, otherNetwork)
	}
	return nil
}

// cut says that a message of which some was there did not go on.
func cut(err error, begun bool) error {
	if begun && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, os.ErrDeadlineExceeded)) {
		return refused(Truncated, "a message that ends too early")
	}
	return err
}

// Write sends one message: memberlist writes each whole. An answer is sealed with the key of the question, which may be one that is about
// to go, so that a node that was away hears of the new one.
func (s *stream) Write(b []byte) (int, error) {
	var out []byte
	if s.dialed && !s.labeled {
		out, s.labeled = s.gate.appendLabel(out), true
	}
	if keys := s.gate.config.Keys; keys == nil {
		out = append(out, b...)
	} else {
		with := keys.primary()
		if s.reply != nil {
			with = *s.reply
		}
		head := binary.BigEndian.AppendUint32([]byte{kindEncrypted}, uint32(sealOverhead+len(b)))
		out = with.seal(append(out, head...), b, append(head, s.gate.config.Label...))
	}
	if _, err := s.Conn.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}
