package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tulle-net/tulle/dataplane/capture"
)

// captureOptions are the flags of tulle capture.
type captureOptions struct {
	runDir, output, write string
	stages                []string
	filter, inner         string
	count                 uint64
	snapLen, rotateFiles  int
	maxSize, rotateSize   byteSize
	duration              time.Duration
	verbose               bool
	sizeGiven             bool // --max-size was
}

const captureHelp = `Capture packets of this node, until interrupted, and show a line for each or write a pcapng file (-w).

Stages (--stage, several separated by commas):
  wire    the tunnel's packets on the underlay's link, both ways, as they really are (the default)
  tap     frames as read from the TAP and as written to it
  encap   encapsulated packets, as handed to the socket: their outer IP and UDP headers are synthesized
  decap   decapsulated packets that were accepted from their peer
  drop    frames as they were when they were dropped, with the reason
In a file each is an interface of its own, and each packet has a comment: stage, verdict, peer, flow. Packets of different
stages may be some milliseconds out of order (reordercap(1) sorts them).

Filters are a part of pcap-filter(7): --filter looks at the first headers of what is captured (of wire and encap: the outer ones),
--inner at those of the packet inside the tunnel. They may use:
  ` + "%s" + `
Other than in libpcap, IPv6 extension headers and VLAN tags are looked behind.

Of each packet the first %d bytes are kept: all of one of an MTU's size; of larger ones, which are cut into segments only behind
the link, -s 0 keeps all.

A capture never slows the packet path down to be complete: what finds no room is counted as missed, on standard error at
the end, and in the file's interface statistics.`

const captureExamples = `  tulle capture                                          the tunnel's packets, a line for each
  tulle capture --stage drop -v                          what is dropped, with all headers
  tulle capture --stage tap,wire --inner "host 10.244.1.7 and port 53" -w dns.pcapng
  tulle capture -w - | wireshark -k -i -                 (Wireshark needs "decode as": udp.port 8472 is vxlan)
  tulle capture -s 128 -w long.pcapng --rotate-size 100MB --rotate-files 10`

// defaultSnapLen keeps whole what has an MTU's size, and of super-packets the headers and the beginning: copying those too costs a
// stream at full rate more than a tenth (BenchmarkCapture).
const defaultSnapLen = 2048

func newCaptureCommand() *cobra.Command {
	o := captureOptions{maxSize: 100e6}
	cmd := &cobra.Command{
		Use: "capture", Short: "Capture packets at any stage of their way", Example: captureExamples, Args: noArgs,
		Long: fmt.Sprintf(captureHelp, strings.ReplaceAll(capture.Supported, "; ", "\n  "), defaultSnapLen),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.sizeGiven = cmd.Flags().Changed("max-size")
			if err := o.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr()); err != nil {
				return fmt.Errorf("tulle capture: %w", err)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.runDir, "run-dir", defaultRunDir, "the daemon's run directory")
	f.StringSliceVar(&o.stages, "stage", []string{"wire"}, "where to capture: wire, tap, encap, decap, drop")
	f.StringVar(&o.filter, "filter", "", "only packets whose first headers match, pcap syntax")
	f.StringVar(&o.inner, "inner", "", "only packets whose headers inside the tunnel match, pcap syntax")
	f.StringVarP(&o.write, "write", "w", "", "write a pcapng file; - for standard output")
	f.Uint64VarP(&o.count, "count", "c", 0, "end after this many packets; 0 for no limit")
	f.IntVarP(&o.snapLen, "snaplen", "s", defaultSnapLen, "bytes kept of each packet; 0 for all")
	f.DurationVar(&o.duration, "duration", 0, "end after this time, such as 30s; 0 for no limit")
	f.Var(&o.maxSize, "max-size", "end when the files hold this many bytes, such as 100MB; 0 for no limit; no limit with --rotate-files")
	f.Var(&o.rotateSize, "rotate-size", "begin another file, FILE with a number, before one gets larger than this; 0 for never")
	f.IntVar(&o.rotateFiles, "rotate-files", 0, "keep only this many files, the last ones; 0 for all")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "show the header fields of every layer")
	f.StringVarP(&o.output, "output", "o", "text", "format without -w: text, or json (a line for each packet)")
	return cmd
}

func (o *captureOptions) check() error {
	query := o.query()
	if _, err := parseCapture(query); err != nil {
		return usageError("%w", err)
	}
	switch {
	case o.output != "text" && o.output != "json":
		return usageError("-o %s: unknown format (allowed: text, json)", o.output)
	case o.write != "" && (o.verbose || o.output != "text"):
		return usageError("-w writes a file; -v and -o are for what is shown without it")
	case o.rotateSize > 0 && (o.write == "" || o.write == "-"):
		return usageError("--rotate-size: -w FILE is needed")
	case o.rotateFiles < 0 || o.rotateFiles > 0 && o.rotateSize == 0:
		return usageError("--rotate-files %d: a number of files, and --rotate-size with it", o.rotateFiles)
	}
	return nil
}

func (o *captureOptions) query() url.Values {
	q := url.Values{"stage": {strings.Join(o.stages, ",")}, "snaplen": {strconv.Itoa(o.snapLen)}}
	for name, value := range map[string]string{"filter": o.filter, "inner": o.inner} {
		if value != "" {
			q.Set(name, value)
		}
	}
	return q
}

// A captureSink is where captured packets go.
type captureSink interface {
	packet(*capture.Record) error
	stats(*capture.Statistics) error
	flush() error // called when nothing more is there at the moment
	close() error
}

// errEnough ends a capture that has reached one of its limits.
var errEnough = errors.New("enough")

func (o *captureOptions) run(ctx context.Context, out, errOut io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	conn, stream, hello, err := dialCapture(ctx, o.runDir, o.query())
	if err != nil {
		return err
	}
	defer conn.Close()
	sink, err := o.sink(hello, out)
	if err != nil {
		return err
	}
	if o.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.duration)
		defer cancel()
	}
	yieldProcess()
	fmt.Fprintf(errOut, "capturing %s of node %s\n", strings.Join(o.stages, ", "), hello.Node)
	defer context.AfterFunc(ctx, func() { conn.CloseWrite() })()
	run := captureRun{options: o, conn: conn, hello: hello, stats: make([]capture.Statistics, len(hello.Interfaces))}
	err = run.follow(capture.NewReader(stream), sink)
	err = errors.Join(err, sink.close())
	run.sum(errOut)
	return err
}

func (o *captureOptions) sink(hello *captureHello, out io.Writer) (captureSink, error) {
	d := describer{hello}
	switch {
	case o.write == "-":
		if f, ok := out.(*os.File); ok && isTerminal(f) {
			return nil, usageError("-w -: standard output is a terminal: pipe it somewhere")
		}
		return newCaptureStream(out, d, o), nil
	case o.write != "":
		return newCaptureFile(d, o)
	}
	return newCapturePrinter(out, d, o), nil
}

func isTerminal(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode()&(os.ModeDevice|os.ModeCharDevice) == os.ModeDevice|os.ModeCharDevice && st.Name() != "null"
}

// A captureRun is one capture as the command sees it.
type captureRun struct {
	options *captureOptions
	conn    *net.UnixConn
	hello   *captureHello
	packets uint64
	cut     uint64               // of them were longer than the snap length
	stats   []capture.Statistics // the last of each interface
	reason  string
}

// follow carries the stream to the sink until its end. When a limit is reached it asks for the end and takes only the counters.
func (r *captureRun) follow(from *capture.Reader, sink captureSink) error {
	enough := false
	for {
		if !from.Buffered() && !enough {
			if err := sink.flush(); err != nil {
				return err
			}
		}
		event, err := from.Next()
		switch {
		case err != nil:
			return err
		case event.Packet != nil && !enough:
			err = r.packet(event.Packet, sink)
		case event.Stats != nil:
			err = r.counters(event.Stats, sink)
		case event.Packet == nil:
			r.reason = event.End
			return sink.flush()
		}
		if errors.Is(err, errEnough) {
			enough = true
			r.conn.CloseWrite()
		} else if err != nil {
			return err
		}
	}
}

func (r *captureRun) packet(p *capture.Record, sink captureSink) error {
	if p.Interface >= len(r.hello.Interfaces) {
		return fmt.Errorf("a packet of interface %d: the daemon is of another version", p.Interface)
	}
	if err := sink.packet(p); err != nil {
		return err
	}
	if p.Length > len(p.Data) {
		r.cut++
	}
	if r.packets++; r.packets == r.options.count {
		return errEnough
	}
	return nil
}

func (r *captureRun) counters(s *capture.Statistics, sink captureSink) error {
	if s.Interface >= len(r.stats) || *s == r.stats[s.Interface] {
		return nil
	}
	before := r.stats[s.Interface].Missed
	r.stats[s.Interface] = *s
	if s.Missed > before {
		s.Comment = fmt.Sprintf("%d packets missed since the last statistics: no room", s.Missed-before)
	}
	return sink.stats(s)
}

// sum says at the end what was captured and what was missed.
func (r *captureRun) sum(out io.Writer) {
	fmt.Fprintf(out, "%d packets captured\n", r.packets)
	if r.cut > 0 {
		fmt.Fprintf(out, "%d of them cut to their first %d bytes (-s 0 keeps all)\n", r.cut, r.options.snapLen)
	}
	for i, s := range r.stats {
		fmt.Fprintf(out, "%s: %d received by the filter, %d missed for lack of room\n", r.hello.Interfaces[i].Name, s.Received, s.Missed)
	}
	if r.reason != "" {
		fmt.Fprintln(out, r.reason)
	}
}

// dialCapture asks the daemon that serves runDir for a capture.
func dialCapture(ctx context.Context, runDir string, query url.Values) (*net.UnixConn, *bufio.Reader, *captureHello, error) {
	socket := filepath.Join(runDir, socketName)
	c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, nil, nil, fmt.Errorf("%s: permission denied: captures are for root and the daemon's own user: run it with sudo", socket)
	case err != nil:
		return nil, nil, nil, &exitError{exitUnreachable, fmt.Errorf("no daemon answers on %s (%w): start tulle node, or name its directory with --run-dir", socket, rootCause(err))}
	}
	conn := c.(*net.UnixConn)
	stream := bufio.NewReaderSize(conn, 1<<20)
	hello, err := upgrade(conn, stream, query)
	if err != nil {
		conn.Close()
		return nil, nil, nil, fmt.Errorf("the daemon on %s: %w", socket, err)
	}
	return conn, stream, hello, nil
}

// upgrade turns the connection into a stream.
func upgrade(conn net.Conn, stream *bufio.Reader, query url.Values) (*captureHello, error) {
	conn.SetDeadline(time.Now().Add(2 * apiTimeout))
	defer conn.SetDeadline(time.Time{})
	req, err := http.NewRequest(http.MethodGet, "http://tulle"+pathCapture+"?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", captureProtocol)
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(stream, req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return nil, errors.New(strings.TrimSpace(string(text)))
	}
	line, err := stream.ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	hello := new(captureHello)
	return hello, json.Unmarshal(line, hello)
}

// A byteSize is a flag's number of bytes, with or without a unit: 500kB, 100MB, 1GB, 64KiB, 1MiB, 1GiB.
type byteSize int64

var byteUnits = []struct {
	name string
	size float64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"B", 1}, {"", 1}}

func (b *byteSize) Set(s string) error {
	for _, u := range byteUnits {
		number, ok := strings.CutSuffix(s, u.name)
		if !ok {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		if err != nil || v < 0 || v*u.size > 1<<60 {
			break
		}
		*b = byteSize(v * u.size)
		return nil
	}
	return errors.New("a number of bytes is needed, such as 500kB, 100MB or 1GiB")
}

func (b *byteSize) String() string { return strconv.FormatInt(int64(*b), 10) }
func (b *byteSize) Type() string   { return "size" }
