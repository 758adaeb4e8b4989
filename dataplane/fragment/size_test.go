package fragment

import (
	"testing"
	"unsafe"
)

// Limits.Datagrams says what an entry costs.
func TestEntrySize(t *testing.T) {
	if n := unsafe.Sizeof(coverage{}) + unsafe.Sizeof(datagram{}); n > 2048+256 {
		t.Errorf("an entry has %d bytes", n)
	}
}
