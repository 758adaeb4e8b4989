package bench

import (
	"fmt"
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "bench: these tests need root (raw sockets and namespaces): run them with sudo")
		os.Exit(2)
	}
	os.Exit(m.Run())
}
