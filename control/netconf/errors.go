package netconf

import (
	"bytes"
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Error is one reason why a net-conf.json is refused. Its text is one line,
// FILE:LINE:COL: KEY: VALUE: reason (allowed: range), without the parts that are empty.
type Error struct {
	File string
	// Line and Col say where the offending text starts, from 1; Col counts characters, a tab being
	// one. Both are 0 when the file as a whole is meant.
	Line, Col int
	Key       string // flannel's spelling, "Backend.VNI" inside Backend; empty for a syntax error
	Value     string // printable and shortened; "(hidden)" for a secret
	Reason    string
	Allowed   string
}

func (e *Error) Error() string {
	s := e.File
	if e.Line > 0 {
		s += fmt.Sprintf(":%d:%d", e.Line, e.Col)
	}
	for _, part := range []string{e.Key, e.Value, e.Reason} {
		if part != "" {
			s += ": " + part
		}
	}
	if e.Allowed != "" {
		s += " (allowed: " + e.Allowed + ")"
	}
	return s
}

// Warning is a remark on an accepted net-conf.json, in the form of an Error.
type Warning Error

func (w Warning) String() string { return (*Error)(&w).Error() }

func (w Warning) compare(o Warning) int {
	return cmp.Or(cmp.Compare(w.Line, o.Line), cmp.Compare(w.Col, o.Col))
}

// position turns a byte offset into a line and a column, both from 1.
func position(src []byte, at int) (line, col int) {
	before := src[:at]
	line = 1 + bytes.Count(before, []byte("\n"))
	return line, 1 + utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:])
}

// printable makes text from the file safe and short enough for a one-line message.
func printable(s string) string {
	s = shorten(s)
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

func shorten(s string) string {
	const most = 64
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	return string([]rune(s)[:most-3]) + "..."
}
