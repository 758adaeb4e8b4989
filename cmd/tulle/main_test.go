package main

import (
	"fmt"
	"os"
	"testing"
)

// asTulle makes the test binary behave as the tulle binary: the daemons of the tests' labs are this very build, with the race
// detector when the tests have it.
const asTulle = "TULLE_TEST_AS_TULLE"

func TestMain(m *testing.M) {
	if os.Getenv(asTulle) != "" {
		if len(os.Args) < 2 || os.Args[1] != "bench" { // whose labs run this binary
			os.Unsetenv(asTulle)
		}
		os.Exit(run(os.Args[1:]))
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the tests of cmd/tulle need root (namespaces, TAP devices): run them with sudo")
		os.Exit(exitUsage)
	}
	code := m.Run()
	os.RemoveAll(pluginHome)
	os.Exit(code)
}
