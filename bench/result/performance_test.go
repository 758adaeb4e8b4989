package result

import (
	"bytes"
	"os"
	"testing"
)

// docs/performance.md is what its result makes, and nothing else: make performance.
func TestPerformancePage(t *testing.T) {
	const page = "../../docs/performance"
	r, err := Load(page + ".json")
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(page + ".md")
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		var got bytes.Buffer
		if err := r.WriteMarkdown(&got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Bytes(), want) {
			t.Fatalf("%s.md is not what %s.json makes: run make performance. It makes:\n%s", page, page, &got)
		}
	}
}
