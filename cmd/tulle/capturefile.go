package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/capture"
)

// captureBuffer is how many bytes of blocks are written at once, while more packets wait. Nothing stays in the buffer when none do.
const captureBuffer = 256 << 10

// A captureFile writes pcapng, and begins another file when it is told to. It writes only whole blocks: where a write was cut, what
// came of the last block is cut off, and it ends.
type captureFile struct {
	describer
	options *captureOptions
	out     io.Writer
	file    *os.File // nil for a stream
	number  int      // of the file, with rotation
	names   []string // files kept so far

	buf     []byte
	blocks  []pendingBlock // those in buf
	comment []byte         // scratch
	header  int64          // bytes of this file before the first packet
	size    int64          // bytes of this file, those in buf included
	past    int64          // bytes of earlier files
	packets uint64         // written
	last    []capture.Statistics
	failed  error
}

// A pendingBlock ends at an offset of the buffer.
type pendingBlock struct {
	end    int
	packet bool
}

// newCaptureStream writes to something that is no file of its own.
func newCaptureStream(out io.Writer, d describer, o *captureOptions) *captureFile {
	f := &captureFile{describer: d, options: o, out: out, last: make([]capture.Statistics, len(d.Interfaces))}
	f.begin()
	return f
}

func newCaptureFile(d describer, o *captureOptions) (*captureFile, error) {
	f := newCaptureStream(nil, d, o)
	return f, f.open()
}

// name is that of the file at hand: with rotation FILE-00001.pcapng and so on, in FILE's directory.
func (f *captureFile) name() string {
	if f.options.rotateSize == 0 {
		return f.options.write
	}
	ext := filepath.Ext(f.options.write)
	return fmt.Sprintf("%s-%05d%s", strings.TrimSuffix(f.options.write, ext), f.number, ext)
}

// open makes the file. Its content is pods' traffic: nobody else may read it. A symbolic link is not followed, so that it stays where it
// was asked for.
func (f *captureFile) open() error {
	f.number++
	name := f.name()
	file, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	switch {
	case errors.Is(err, unix.ELOOP):
		return fmt.Errorf("-w %s: it is a symbolic link: name the file itself", name)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("-w %s: permission denied: choose a directory in which this user may write", name)
	case err != nil:
		return fmt.Errorf("-w: %w", err)
	}
	f.file, f.out = file, file
	f.names = append(f.names, name)
	if keep := f.options.rotateFiles; keep > 0 && len(f.names) > keep {
		os.Remove(f.names[0]) // somebody may have moved it: then it is not ours any more
		f.names = f.names[1:]
	}
	return nil
}

// begin puts what every file begins with into the buffer.
func (f *captureFile) begin() {
	f.buf = capture.AppendSection(f.buf[:0], capture.Section{
		Application: "tulle " + f.Version, OS: runtime.GOOS, Comment: "node " + f.Node + ", stages " + strings.Join(f.options.stages, ","),
	})
	for _, i := range f.Interfaces {
		f.buf = capture.AppendInterface(f.buf, i, f.SnapLen, f.filterText())
	}
	f.blocks = append(f.blocks[:0], pendingBlock{len(f.buf), false})
	f.header = int64(len(f.buf))
	f.size = f.header
}

func (f *captureFile) filterText() string {
	switch o := f.options; {
	case o.inner == "":
		return o.filter
	case o.filter == "":
		return "inner: " + o.inner
	default:
		return o.filter + " inner: " + o.inner
	}
}

// statsRoom is kept free below a limit for the final statistics of each interface, bytes.
const statsRoom = 160

func (f *captureFile) room(limit byteSize) int64 {
	return int64(limit) - statsRoom*int64(len(f.Interfaces))
}

func (f *captureFile) packet(r *capture.Record) error {
	before := len(f.buf)
	f.buf = f.appendPacket(r)
	length := int64(len(f.buf) - before)
	if f.reached(length) {
		f.buf = f.buf[:before]
		return errEnough
	}
	if rotate := f.options.rotateSize; rotate > 0 && f.size > f.header && f.size+length > f.room(rotate) {
		f.buf = f.buf[:before]
		if err := f.rotate(); err != nil {
			return err
		}
		f.buf = f.appendPacket(r)
	}
	return f.appended(length, true)
}

// appendPacket returns the buffer with a record's block behind it.
func (f *captureFile) appendPacket(r *capture.Record) []byte {
	f.comment = f.appendComment(f.comment[:0], r)
	return capture.AppendPacket(f.buf, &capture.Block{
		Interface: r.Interface, Time: r.Time, Data: r.Data, Length: r.Length, Direction: direction(r), Comment: f.comment,
	})
}

// reached says whether another block makes the files larger than they may get.
func (f *captureFile) reached(length int64) bool {
	o := f.options
	if o.maxSize == 0 || o.write == "-" && !o.sizeGiven || o.rotateFiles > 0 && !o.sizeGiven {
		return false
	}
	return f.past+f.size+length > f.room(o.maxSize)
}

func (f *captureFile) appended(length int64, packet bool) error {
	f.size += length
	f.blocks = append(f.blocks, pendingBlock{len(f.buf), packet})
	if len(f.buf) < captureBuffer {
		return nil
	}
	return f.flush()
}

func (f *captureFile) stats(s *capture.Statistics) error {
	f.last[s.Interface] = *s
	before := len(f.buf)
	f.buf = capture.AppendStatistics(f.buf, s)
	return f.appended(int64(len(f.buf)-before), false)
}

// rotate ends a file with the counters as they are and begins the next.
func (f *captureFile) rotate() error {
	for i, s := range f.last {
		s.Interface, s.Time = i, time.Now()
		f.buf = capture.AppendStatistics(f.buf, &s)
		f.blocks = append(f.blocks, pendingBlock{len(f.buf), false})
	}
	if err := f.finish(); err != nil {
		return err
	}
	f.past += f.size
	f.begin()
	return f.open()
}

// flush writes whole blocks. After a failure it cuts off what is left of one.
func (f *captureFile) flush() error {
	if len(f.buf) == 0 || f.failed != nil {
		return f.failed
	}
	n, err := f.out.Write(f.buf)
	whole := 0
	for _, b := range f.blocks {
		if b.end > n {
			break
		}
		whole = b.end
		if b.packet {
			f.packets++
		}
	}
	if err != nil {
		f.cut(int64(n - whole))
		f.failed = fmt.Errorf("-w %s: %w: the %d packets before it are whole", f.target(), rootCause(err), f.packets)
	}
	f.buf, f.blocks = f.buf[:0], f.blocks[:0]
	return f.failed
}

func (f *captureFile) target() string {
	if f.file == nil {
		return "-"
	}
	return f.file.Name()
}

// cut removes the file's last n bytes. Where that cannot be done, readers have to cope with a cut block: all do.
func (f *captureFile) cut(n int64) {
	if f.file == nil {
		return
	}
	if end, err := f.file.Seek(0, io.SeekCurrent); err == nil && n > 0 {
		f.file.Truncate(end - n)
	}
}

func (f *captureFile) finish() error {
	err := f.flush()
	if f.file != nil {
		err = errors.Join(err, f.file.Close())
	}
	return err
}

func (f *captureFile) close() error {
	failed := f.failed
	if err := f.finish(); failed == nil {
		return err
	}
	return nil // said already
}
