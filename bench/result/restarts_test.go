package result

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// TestRestarts shows one restart in every form that has tables.
func TestRestarts(t *testing.T) {
	one := Restarts{What: "killed", Times: 2, Datagrams: 400, Lost: 3, Connections: 8, Flows: 12, FlowsKept: 11, Stall: 70 * time.Millisecond, Builds: 1}
	for i := range 100 {
		one.Gaps = append(one.Gaps, time.Duration(100-i)*time.Millisecond)
	}
	if one.Gap(50) != 50*time.Millisecond || one.Gap(99) != 99*time.Millisecond || one.Gap(100) != 100*time.Millisecond || new(Restarts).Gap(50) != 0 {
		t.Errorf("gaps %v, %v, %v", one.Gap(50), one.Gap(99), one.Gap(100))
	}
	r := &Result{Restarts: []Restarts{one}}
	for name, form := range map[string]struct {
		write func(*bytes.Buffer) error
		want  string
	}{
		"table":    {func(b *bytes.Buffer) error { return r.WriteTable(b) }, "killed 2 50ms / 99ms / 100ms 400 3 0 0 8 0 70ms 11 of 12 1"},
		"markdown": {func(b *bytes.Buffer) error { return r.WriteMarkdown(b) }, "| killed | 2 | 50ms / 99ms / 100ms | 400 | 3 | 0 | 0 | 8 | 0 | 70ms | 11 of 12 | 1 |"},
		"html":     {func(b *bytes.Buffer) error { return r.WriteHTML(b) }, "<td>killed</td><td>2</td><td>50ms / 99ms / 100ms</td>"},
	} {
		var b bytes.Buffer
		if err := form.write(&b); err != nil || !strings.Contains(strings.Join(strings.Fields(b.String()), " "), form.want) {
			t.Errorf("%s: %v, want %q in\n%s", name, err, form.want, b.String())
		}
	}
}
