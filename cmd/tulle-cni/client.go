package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/tulle-net/tulle/control/cniapi"
)

const (
	socketName = "tulle.sock"
	// timeout is for the whole exchange. Runtimes give up later.
	timeout = 60 * time.Second
	// maxAnswer bounds an answer, in bytes.
	maxAnswer = 1 << 20
)

// ask posts a request to the daemon and reads its answer. It speaks as much of HTTP/1.0 as that takes: net/http would make this
// program start at half the speed.
func (c *config) ask(path string, request, answer any) error {
	socket := filepath.Join(c.RunDir, socketName)
	conn, err := net.DialTimeout("unix", socket, timeout)
	if err != nil {
		return &cniapi.Error{Code: cniapi.CodeUnavailable, Msg: fmt.Sprintf("no daemon answers on %s (%s): start tulle node, or name its directory as runDir", socket, err)}
	}
	defer conn.Close()
	body, err := json.Marshal(request)
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(timeout))
	}
	if err == nil {
		_, err = fmt.Fprintf(conn, "POST %s HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
	}
	if err == nil {
		err = read(conn, answer)
	}
	if _, ok := err.(*cniapi.Error); ok || err == nil {
		return err
	}
	return &cniapi.Error{Code: cniapi.CodeUnavailable, Msg: fmt.Sprintf("the daemon on %s: %s", socket, err)}
}

// read reads a response: status line, headers, and the body until the end.
func read(from io.Reader, answer any) error {
	r := bufio.NewReader(io.LimitReader(from, maxAnswer))
	line, err := r.ReadString('\n')
	if err != nil {
		return fmt.Errorf("it hung up: %w", err)
	}
	_, rest, _ := strings.Cut(line, " ")
	code, _, _ := strings.Cut(rest, " ")
	status, err := strconv.Atoi(code)
	if !strings.HasPrefix(line, "HTTP/1.") || err != nil {
		return fmt.Errorf("it answered %q", line)
	}
	for line != "\r\n" {
		if line, err = r.ReadString('\n'); err != nil {
			return fmt.Errorf("it hung up: %w", err)
		}
	}
	if status != 200 {
		e := &cniapi.Error{}
		if err := json.NewDecoder(r).Decode(e); err != nil || e.Code == 0 {
			return fmt.Errorf("it answered status %d: it is of a version that this plugin does not fit", status)
		}
		return e
	}
	if err := json.NewDecoder(r).Decode(answer); err != nil {
		return fmt.Errorf("its answer: %w", err)
	}
	return nil
}
