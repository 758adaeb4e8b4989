package holder

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// A message is a header, a part of a set's bytes, and a part of its descriptors. A set goes in as many messages as it takes, each of which
// says how much of the set is left with it: the one that leaves nothing ends the set. The header is version and operation,
// two bytes of 0, and as 32-bit big-endian numbers the bytes and the descriptors that are left. Of a refusal the bytes are the reason.
const (
	version    = 1
	headerLen  = 12
	maxMessage = 64 << 10 // header included, bytes
	maxRights  = 253      // SCM_MAX_FD
)

type operation uint8

// What a client asks, and what it is answered.
const (
	opKeep operation = iota + 1 // comes with a set; answered by opDone
	opTake                      // answered by opSet with the set, or opEmpty
	opDrop                      // answered by opDone
	opDone
	opSet
	opEmpty
	opRefused
)

// send writes a message or, if the set is larger, several.
func send(c *net.UnixConn, op operation, s Set) error {
	for meta, files := s.Meta, s.Files; ; {
		part, rights := meta[:min(len(meta), maxMessage-headerLen)], files[:min(len(files), maxRights)]
		b := binary.BigEndian.AppendUint32([]byte{version, byte(op), 0, 0}, uint32(len(meta)))
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(files))), part...)
		var oob []byte
		if len(rights) > 0 {
			oob = unix.UnixRights(rights...)
		}
		if _, _, err := c.WriteMsgUnix(b, oob, nil); err != nil {
			return err
		}
		if meta, files = meta[len(part):], files[len(rights):]; len(meta)+len(files) == 0 {
			return nil
		}
	}
}

// A receiver reads the messages of one connection.
type receiver struct {
	conn *net.UnixConn
	buf  [maxMessage + 1]byte
	oob  []byte
}

func newReceiver(c *net.UnixConn) *receiver {
	return &receiver{conn: c, oob: make([]byte, unix.CmsgSpace(4*maxRights))}
}

// receive reads one operation with its set. more is called after each message that leaves something. When it fails it has closed every
// descriptor that came.
func (r *receiver) receive(more func() error) (op operation, s Set, err error) {
	defer func() {
		if err != nil {
			s.Close()
			s = Set{}
		}
	}()
	meta, files := 0, 0 // left, as the message before said
	for first := true; ; first = false {
		n, fds, err := r.message()
		s.Files = append(s.Files, fds...)
		if err != nil {
			return 0, s, err
		}
		b := r.buf[:n]
		if n < headerLen || b[0] != version || b[2] != 0 || b[3] != 0 {
			return 0, s, errors.New("no message of this version")
		}
		leftMeta, leftFiles, part := int(binary.BigEndian.Uint32(b[4:])), int(binary.BigEndian.Uint32(b[8:])), b[headerLen:]
		if first {
			op, meta, files = operation(b[1]), leftMeta, leftFiles
			if err := checkSize(meta, files); err != nil {
				return 0, s, err
			}
		}
		switch {
		case operation(b[1]) != op || leftMeta != meta || leftFiles != files:
			return 0, s, errors.New("a message that does not go on with the one before")
		case len(part) > meta || len(fds) > files:
			return 0, s, fmt.Errorf("%d bytes and %d descriptors where %d and %d are left", len(part), len(fds), meta, files)
		}
		s.Meta = append(s.Meta, part...)
		if meta, files = meta-len(part), files-len(fds); meta+files == 0 {
			return op, s, nil
		}
		if len(part)+len(fds) == 0 {
			return 0, s, errors.New("a message with nothing of what is left")
		}
		if err := more(); err != nil {
			return 0, s, err
		}
	}
}

// message reads one message into buf. The descriptors that came with it are the caller's, after an error too.
func (r *receiver) message() (n int, fds []int, err error) {
	n, oobn, flags, _, err := r.conn.ReadMsgUnix(r.buf[:], r.oob)
	fds, bad := rights(r.oob[:oobn]) // an empty message, which looks like the end, may have some
	switch {
	case err != nil:
		return 0, fds, err
	case bad != nil:
		return 0, fds, bad
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || n > maxMessage:
		return 0, fds, errors.New("a message that is too long")
	}
	return n, fds, nil
}

func rights(oob []byte) (fds []int, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	for i := range messages {
		got, bad := unix.ParseUnixRights(&messages[i])
		fds, err = append(fds, got...), errors.Join(err, bad)
	}
	return fds, err
}

// Trusted says whether the other end of a unix socket is root's or this user's own (unix(7), SO_PEERCRED).
func Trusted(c *net.UnixConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	ok := false
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		ok = err == nil && (cred.Uid == 0 || int(cred.Uid) == os.Geteuid())
	})
	return err == nil && ok
}
