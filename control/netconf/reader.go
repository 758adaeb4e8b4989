package netconf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// This reader exists for its positions and messages: encoding/json loses positions, and the readers
// that keep them give a syntax error as text without the enclosing key, run an unterminated string
// into the next line and refuse a comment at the very end of the file.

// maxDepth bounds nesting; flannel's deepest key is at depth 2.
const maxDepth = 64

type kind byte

const (
	kindNull kind = iota
	kindBool
	kindNumber
	kindString
	kindArray
	kindObject
)

func (k kind) String() string {
	return [...]string{"null", "a boolean", "a number", "a string", "an array", "an object"}[k]
}

// value is one JSON value with its place in the file.
type value struct {
	kind       kind
	start, end int      // byte offsets
	text       string   // a string's content; the literal of null, a boolean or a number
	members    []member // valid iff kind is kindObject; the elements of arrays are not kept
}

type member struct {
	key   string
	start int // of the key
	value value
}

// syntaxError is what is wrong at a byte offset.
type syntaxError struct {
	at     int
	reason string
}

// errEmpty: nothing but white space and comments.
var errEmpty = &syntaxError{reason: "empty"}

type reader struct {
	src   []byte // valid UTF-8
	pos   int
	depth int
}

// read reads src as one JSON value with comments.
func read(src []byte) (value, *syntaxError) {
	r := &reader{src: src}
	if err := r.space(); err != nil {
		return value{}, err
	}
	if r.pos == len(src) {
		return value{}, errEmpty
	}
	v, err := r.value("a JSON object")
	if err != nil {
		return v, err
	}
	if err := r.space(); err != nil {
		return v, err
	}
	if r.pos < len(src) {
		return v, r.errorf(r.pos, "expected nothing after the end of %s, found %s", v.kind, r.found())
	}
	return v, nil
}

func (r *reader) errorf(at int, format string, args ...any) *syntaxError {
	return &syntaxError{at, fmt.Sprintf(format, args...)}
}

// peek returns the next byte, 0 at the end of the file.
func (r *reader) peek() byte {
	if r.pos == len(r.src) {
		return 0
	}
	return r.src[r.pos]
}

// found describes what stands at the current position.
func (r *reader) found() string {
	if r.pos == len(r.src) {
		return "the end of the file"
	}
	if w := r.word(); w != "" {
		return printable(w)
	}
	c, _ := utf8.DecodeRune(r.src[r.pos:])
	return fmt.Sprintf("%q", c)
}

// word returns what stands at the current position and looks like a number or a name.
func (r *reader) word() string {
	rest := r.src[r.pos:]
	end := bytes.IndexFunc(rest, func(c rune) bool {
		return !('0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || strings.ContainsRune("+-._", c))
	})
	if end < 0 {
		end = len(rest)
	}
	return string(rest[:end])
}

// space moves past white space and comments.
func (r *reader) space() *syntaxError {
	for {
		r.pos = len(r.src) - len(bytes.TrimLeft(r.src[r.pos:], " \t\r\n"))
		rest := r.src[r.pos:]
		switch {
		case bytes.HasPrefix(rest, []byte("//")):
			if n := bytes.IndexByte(rest, '\n'); n >= 0 {
				r.pos += n
			} else {
				r.pos = len(r.src)
			}
		case bytes.HasPrefix(rest, []byte("/*")):
			n := bytes.Index(rest[2:], []byte("*/"))
			if n < 0 {
				return r.errorf(r.pos, "unterminated comment: no closing */")
			}
			r.pos += n + 4
		default:
			return nil
		}
	}
}

// value reads the value that starts here; what names it in messages.
func (r *reader) value(what string) (value, *syntaxError) {
	switch r.peek() {
	case '{', '[':
		if r.depth == maxDepth {
			return value{}, r.errorf(r.pos, "nested deeper than %d levels", maxDepth)
		}
		r.depth++
		defer func() { r.depth-- }()
		if r.peek() == '{' {
			return r.object()
		}
		return r.array()
	case '"':
		return r.str()
	}
	return r.literal(what)
}

func (r *reader) object() (value, *syntaxError) {
	v := value{kind: kindObject, start: r.pos}
	r.pos++
	if err := r.space(); err != nil {
		return v, err
	}
	for closed := r.skip('}'); !closed; {
		m, err := r.member(v.start)
		if err != nil {
			return v, err
		}
		v.members = append(v.members, m)
		after := fmt.Sprintf("the value of %q", shorten(m.key))
		if closed, err = r.separator('}', v.start, m.value.end, after); err != nil {
			return v, err
		}
	}
	v.end = r.pos
	return v, nil
}

func (r *reader) array() (value, *syntaxError) {
	v := value{kind: kindArray, start: r.pos}
	r.pos++
	if err := r.space(); err != nil {
		return v, err
	}
	for closed := r.skip(']'); !closed; {
		if r.pos == len(r.src) {
			return v, r.unclosed(']', v.start)
		}
		element, err := r.value("a value in the array")
		if err != nil {
			return v, err
		}
		if closed, err = r.separator(']', v.start, element.end, "the array element"); err != nil {
			return v, err
		}
	}
	v.end = r.pos
	return v, nil
}

func (r *reader) skip(c byte) bool {
	if r.peek() != c {
		return false
	}
	r.pos++
	return true
}

// member reads a key, its colon and its value.
func (r *reader) member(object int) (member, *syntaxError) {
	switch {
	case r.pos == len(r.src):
		return member{}, r.unclosed('}', object)
	case r.peek() != '"':
		return member{}, r.errorf(r.pos, "expected a key in double quotes, found %s", r.found())
	}
	key, err := r.str()
	if err != nil {
		return member{}, err
	}
	if err := r.space(); err != nil {
		return member{}, err
	}
	name := shorten(key.text)
	if !r.skip(':') {
		return member{}, r.errorf(r.pos, "expected ':' after the key %q, found %s", name, r.found())
	}
	if err := r.space(); err != nil {
		return member{}, err
	}
	v, err := r.value(fmt.Sprintf("the value of %q", name))
	return member{key.text, key.start, v}, err
}

// separator reads what follows a member or element that ended at the offset end: a comma with another
// one to come, or the closing bracket.
func (r *reader) separator(closing byte, opened, end int, after string) (closed bool, err *syntaxError) {
	if err := r.space(); err != nil {
		return false, err
	}
	comma := r.pos
	switch {
	case r.skip(closing):
		return true, nil
	case r.pos == len(r.src):
		return false, r.unclosed(closing, opened)
	case r.skip(','):
		if err := r.space(); err != nil || r.peek() != closing {
			return false, err
		}
		line, _ := position(r.src, end)
		return false, r.errorf(comma, "trailing ',' after %s on line %d", after, line)
	}
	line, _ := position(r.src, end)
	if r.peek() == '"' {
		return false, r.errorf(r.pos, "expected ',' after %s on line %d", after, line)
	}
	return false, r.errorf(r.pos, "expected ',' or '%c' after %s on line %d, found %s", closing, after, line, r.found())
}

func (r *reader) unclosed(closing byte, opened int) *syntaxError {
	line, col := position(r.src, opened)
	return r.errorf(r.pos, "the file ends before the '%c' for the '%c' at line %d, column %d",
		closing, r.src[opened], line, col)
}

// literal reads null, a boolean or a number.
func (r *reader) literal(what string) (value, *syntaxError) {
	v := value{start: r.pos, text: r.word()}
	switch lower := strings.ToLower(v.text); {
	case v.text == "":
		return v, r.errorf(r.pos, "expected %s, found %s", what, r.found())
	case v.text == "null":
		v.kind = kindNull
	case v.text == "true" || v.text == "false":
		v.kind = kindBool
	case lower == "null" || lower == "true" || lower == "false":
		return v, r.errorf(r.pos, "expected %s, found %s: write %s", what, v.text, lower)
	case !json.Valid([]byte(v.text)):
		return v, r.errorf(r.pos, "expected %s, found %s: neither a number nor a string in double quotes", what, r.found())
	default:
		v.kind = kindNumber
	}
	r.pos += len(v.text)
	v.end = r.pos
	return v, nil
}

// str reads a string. It ends on its line, so that a missing quote is found where it is missing.
func (r *reader) str() (value, *syntaxError) {
	v := value{kind: kindString, start: r.pos}
	for r.pos++; ; r.pos++ {
		switch c := r.peek(); {
		case r.pos == len(r.src) || c == '\n' || c == '\r':
			line, _ := position(r.src, v.start)
			return v, r.errorf(v.start, "unterminated string: no closing '\"' on line %d", line)
		case c < ' ':
			return v, r.errorf(r.pos, "control character U+%04X in a string", c)
		case c == '\\' && bytes.IndexByte([]byte(`\"`), r.next()) >= 0:
			r.pos++
		case c == '"':
			r.pos++
			v.end = r.pos
			var err *syntaxError
			v.text, err = r.unquote(v.start)
			return v, err
		}
	}
}

// next returns the byte after the current one, 0 at the end of the file.
func (r *reader) next() byte {
	if r.pos+1 >= len(r.src) {
		return 0
	}
	return r.src[r.pos+1]
}

// unquote returns the content of the string from start to the current position.
func (r *reader) unquote(start int) (s string, _ *syntaxError) {
	quoted := r.src[start:r.pos]
	err := json.Unmarshal(quoted, &s)
	if err == nil {
		return s, nil
	}
	// Only escapes are left to be wrong; the error's offset is behind the first byte that is.
	escape, end := 0, len(quoted)
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		end = int(syntax.Offset)
		escape = bytes.LastIndexByte(quoted[:end-1], '\\')
	}
	for end < len(quoted) && !utf8.RuneStart(quoted[end]) {
		end++
	}
	return "", r.errorf(start+escape, "invalid escape %s in a string", printable(string(quoted[escape:end])))
}
