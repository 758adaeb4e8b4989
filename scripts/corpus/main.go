// Corpus takes over what the fuzzers found into testdata, where every test run tries it again: of the inputs in the go command's cache those
// that reach statements which no smaller one and no seed reaches. It says how much of each package all of them together reach.
//
//	go run ./scripts/corpus [REGEXP of "package fuzzer"]
package main

import (
	"bufio"
	"cmp"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// covered are the packages whose statements count: those that read what comes from elsewhere, and those behind them.
const covered = "./dataplane,./dataplane/packet,./dataplane/fragment,./dataplane/conntrack,./dataplane/capture,./dataplane/trace,./dataplane/pmtu,./encap,./control/claim,./control/netconf"

func main() {
	only := regexp.MustCompile("")
	if len(os.Args) > 1 {
		only = regexp.MustCompile(os.Args[1])
	}
	if err := run(only); err != nil {
		fmt.Fprintln(os.Stderr, "corpus:", err)
		os.Exit(1)
	}
}

// A profile has the blocks of statements that were reached, and how many statements each has.
type profile map[string]int

func run(only *regexp.Regexp) error {
	cache, err := output("go", "env", "GOCACHE")
	if err != nil {
		return err
	}
	listing, err := output("go", "list", "-f", "{{.ImportPath}} {{.Dir}}", "./...")
	if err != nil {
		return err
	}
	reached, all := profile{}, profile{}
	for line := range strings.Lines(listing) {
		path, dir, _ := strings.Cut(strings.TrimSpace(line), " ")
		names, err := fuzzers(dir)
		if err != nil {
			return err
		}
		names = slices.DeleteFunc(names, func(name string) bool { return !only.MatchString(path + " " + name) })
		if len(names) == 0 {
			continue
		}
		b, err := build(path, dir)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := b.collect(name, filepath.Join(cache, "fuzz", path, name), reached, all); err != nil {
				return err
			}
		}
		os.RemoveAll(b.temporary)
	}
	report(reached, all)
	return nil
}

func output(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}

var fuzzer = regexp.MustCompile(`(?m)^func (Fuzz\w*)`)

func fuzzers(dir string) (names []string, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for _, m := range fuzzer.FindAllStringSubmatch(string(text), -1) {
			names = append(names, m[1])
		}
	}
	return names, err
}

// A binary is a package's tests, with coverage.
type binary struct{ path, dir, temporary string }

func build(path, dir string) (*binary, error) {
	temporary, err := os.MkdirTemp("", "tulle-corpus")
	if err != nil {
		return nil, err
	}
	b := &binary{path, dir, temporary}
	_, err = output("go", "test", "-c", "-cover", "-coverpkg", covered, "-o", filepath.Join(temporary, "test"), path)
	return b, err
}

// collect keeps in testdata what adds to the fuzzer's coverage, smaller inputs before larger ones.
func (b *binary) collect(name, found string, reached, all profile) error {
	kept := filepath.Join(b.dir, "testdata", "fuzz", name)
	if err := os.MkdirAll(kept, 0o755); err != nil {
		return err
	}
	inputs, err := gather(found, kept)
	if err != nil {
		return err
	}
	union, total, err := b.cover("^" + name + "$/^seed#")
	if err != nil {
		return err
	}
	seeds, saved := len(union), 0
	for _, input := range inputs {
		got, _, err := b.cover("^" + name + "$/^" + input + "$")
		if err != nil {
			return err
		}
		before := len(union)
		maps.Copy(union, got)
		if len(union) > before {
			saved++
		} else if err := os.Remove(filepath.Join(kept, input)); err != nil {
			return err
		}
	}
	os.Remove(kept) // fails unless empty
	os.Remove(filepath.Dir(kept))
	fmt.Printf("%s %s: %d of %d inputs kept, %d blocks of the seeds', %d in all\n", b.path, name, saved, len(inputs), seeds, len(union))
	maps.Copy(reached, union)
	maps.Copy(all, total)
	return nil
}

// gather copies what was found beside what is kept, and returns all names, the smallest input first.
func gather(found, kept string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(found, "*"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(kept, filepath.Base(file)), text, 0o644); err != nil {
			return nil, err
		}
	}
	entries, err := os.ReadDir(kept)
	if err != nil {
		return nil, err
	}
	size := map[string]int64{}
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			size[e.Name()] = info.Size()
		}
	}
	names := slices.Collect(maps.Keys(size))
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(size[a], size[b]), cmp.Compare(a, b)) })
	return names, nil
}

// cover runs the tests that match and returns the blocks that they reach, and all there are.
func (b *binary) cover(tests string) (reached, all profile, err error) {
	file := filepath.Join(b.temporary, "profile")
	cmd := exec.Command(filepath.Join(b.temporary, "test"), "-test.run", tests, "-test.coverprofile", file)
	cmd.Dir = b.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, nil, fmt.Errorf("%s: %s: %w\n%s", b.path, tests, err, out)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	reached, all = profile{}, profile{}
	for lines := bufio.NewScanner(f); lines.Scan(); { // file:line.column,line.column statements count
		fields := strings.Fields(lines.Text())
		if len(fields) != 3 {
			continue
		}
		statements, _ := strconv.Atoi(fields[1])
		all[fields[0]] = statements
		if fields[2] != "0" {
			reached[fields[0]] = statements
		}
	}
	return reached, all, nil
}

func report(reached, all profile) {
	sum := func(p profile) map[string]int {
		packages := map[string]int{}
		for block, statements := range p {
			packages[filepath.Dir(block)] += statements
		}
		return packages
	}
	got, total := sum(reached), sum(all)
	for _, path := range slices.Sorted(maps.Keys(total)) {
		fmt.Printf("%5.1f%% of %4d statements  %s\n", 100*float64(got[path])/float64(total[path]), total[path], path)
	}
}
