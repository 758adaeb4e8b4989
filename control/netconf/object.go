package netconf

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
)

// maxWarnings bounds what is said about a file that is not a net-conf.json at all.
const maxWarnings = 20

// decoder turns one file into a Config. Its methods go on after an error, with zero values, and the
// first error stands: so every known key is looked up whatever happens, and the rest is unknown.
type decoder struct {
	file     string
	src      []byte
	warnings []Warning
	err      *Error
}

func (d *decoder) report(e *Error) {
	if d.err == nil {
		d.err = e
	}
}

func (d *decoder) failAt(at int, key, val, reason, allowed string) {
	line, col := position(d.src, at)
	d.report(&Error{d.file, line, col, key, val, reason, allowed})
}

func (d *decoder) warnAt(at int, key, val, reason string) {
	line, col := position(d.src, at)
	if len(d.warnings) == maxWarnings {
		key, val, reason = "", "", "more warnings, not shown"
	}
	d.warnings = append(d.warnings, Warning{File: d.file, Line: line, Col: col, Key: key, Value: val, Reason: reason})
}

// object reads the known keys of a JSON object, each by a method named for its type.
type object struct {
	*decoder
	prefix string // of its keys in messages: "" or "Backend."
	value  value
	byName map[string]member // by fold of the key
	known  []string          // the keys that were looked up
}

// fold maps keys that encoding/json takes for the same to one string.
func fold(key string) string {
	return strings.Map(func(r rune) rune {
		for {
			next := unicode.SimpleFold(r)
			if next <= r {
				return next // the least of those that fold together
			}
			r = next
		}
	}, key)
}

func (d *decoder) object(prefix string, v value) *object {
	o := &object{decoder: d, prefix: prefix, value: v, byName: make(map[string]member, len(v.members))}
	for _, m := range v.members {
		name := fold(m.key)
		if first, ok := o.byName[name]; ok {
			line, col := position(d.src, first.start)
			d.failAt(m.start, prefix+printable(m.key), "",
				fmt.Sprintf("set twice: %q is on line %d, column %d already", shorten(first.key), line, col), "")
			continue
		}
		o.byName[name] = m
	}
	return o
}

// find looks a known key up. null stands for an absent key, as encoding/json has it.
func (o *object) find(name string) (v value, ok bool) {
	o.known = append(o.known, name)
	m, ok := o.byName[fold(name)]
	return m.value, ok && m.value.kind != kindNull
}

func (o *object) fail(v value, name, reason, allowed string) {
	o.failAt(v.start, o.prefix+name, o.show(v), reason, allowed)
}

// show gives a value as messages have it.
func (o *object) show(v value) string {
	switch v.kind {
	case kindArray:
		return "[...]"
	case kindObject:
		return "{...}"
	}
	return printable(v.text)
}

// typed looks a key up that must hold the kind k.
func (o *object) typed(name string, k kind, allowed string) (v value, ok bool) {
	v, ok = o.find(name)
	if ok && v.kind != k {
		o.wrongKind(v, name, k, allowed)
		return v, false
	}
	return v, ok
}

// wrongKind shows a string in its quotes: they are what is wrong with it.
func (o *object) wrongKind(v value, name string, k kind, allowed string) {
	shown := o.show(v)
	if v.kind == kindString {
		shown = strconv.Quote(shorten(v.text))
	}
	o.failAt(v.start, o.prefix+name, shown, fmt.Sprintf("%s, not %s", v.kind, k), allowed)
}

func (o *object) boolean(name string, unset bool) bool {
	v, ok := o.typed(name, kindBool, "true or false")
	if !ok {
		return unset
	}
	return v.text == "true"
}

func (o *object) str(name, unset string) string {
	v, ok := o.typed(name, kindString, "")
	if !ok {
		return unset
	}
	return v.text
}

// secret is a str whose value appears in no message.
func (o *object) secret(name string) (v value, ok bool) {
	v, ok = o.find(name)
	if ok && v.kind != kindString {
		o.failAt(v.start, o.prefix+name, "(hidden)", fmt.Sprintf("%s, not %s", v.kind, kindString), "")
		return v, false
	}
	return v, ok
}

// integer returns a whole number, or the nearest int64 to one that is too large.
func (o *object) integer(name, allowed string) (n int64, v value, ok bool) {
	v, ok = o.typed(name, kindNumber, allowed)
	if !ok {
		return 0, v, false
	}
	n, err := strconv.ParseInt(v.text, 10, 64)
	if errors.Is(err, strconv.ErrSyntax) || v.text == "-0" {
		o.fail(v, name, "not a whole number", allowed)
		return 0, v, false
	}
	return n, v, true
}

// between returns a whole number from lo to hi, or unset for an absent key.
func (o *object) between(name string, unset, lo, hi int64) int64 {
	allowed := fmt.Sprintf("%d to %d", lo, hi)
	n, v, ok := o.integer(name, allowed)
	switch {
	case !ok:
		return unset
	case n < lo || n > hi:
		o.fail(v, name, "out of range", allowed)
		return unset
	}
	return n
}

// warnUnknown warns of every key that was not looked up; all known ones must have been.
func (o *object) warnUnknown(kind string) {
	known := make(map[string]bool, len(o.known))
	for _, name := range o.known {
		known[fold(name)] = true
	}
	for _, m := range o.value.members {
		if known[fold(m.key)] {
			continue
		}
		if len(o.warnings) > maxWarnings {
			return
		}
		reason := "not " + kind + ": ignored"
		if near := nearest(m.key, o.known); near != "" {
			reason += fmt.Sprintf("; did you mean %s?", o.prefix+near)
		}
		o.warnAt(m.start, o.prefix+printable(m.key), "", reason)
	}
}

// nearest returns the name that key was probably meant to be, or "".
func nearest(key string, names []string) string {
	if len(key) > 40 {
		return ""
	}
	best, least := "", 3 // up to two letters wrong, and less than half of them
	for _, name := range names {
		if n := distance(fold(key), fold(name)); n < least && 2*n < len(name) {
			best, least = name, n
		}
	}
	return best
}

// distance counts the bytes to insert, delete, change or swap with the next one to turn a into b.
func distance(a, b string) int {
	before, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before, prev, row = prev, row, before
		row[0] = i + 1
		for j := range len(b) {
			change := 1
			if a[i] == b[j] {
				change = 0
			}
			row[j+1] = min(prev[j+1]+1, row[j]+1, prev[j]+change)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
	}
	return row[len(b)]
}
