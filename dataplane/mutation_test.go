package dataplane

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// countingFile is where the engine counts; everything that adds to a counter is in it.
const countingFile = "worker.go"

// TestEveryIncrementMatters takes each single increment of a counter out of the engine, one at a time, and demands that
// the tests of the ledger fail without it. It compiles each mutant with the go command's -overlay.
func TestEveryIncrementMatters(t *testing.T) {
	lines := incrementLines(t)
	if len(lines) < 10 {
		t.Fatalf("%d increments found in %s, expected more: is this still the counting file?", len(lines), countingFile)
	}
	dir := t.TempDir()
	for i, line := range lines {
		t.Run(fmt.Sprintf("line %d", line), func(t *testing.T) {
			out, err := runMutant(t, filepath.Join(dir, fmt.Sprint(i)), i)
			switch {
			case err == nil:
				t.Errorf("the tests pass without the increment in %s:%d", countingFile, line)
			case !strings.Contains(out, "--- FAIL"):
				t.Errorf("the mutant did not run: %v\n%s", err, out)
			}
		})
	}
}

// runMutant runs the ledger's tests against the engine without the i-th increment.
func runMutant(t *testing.T, dir string, i int) (string, error) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	mutant, overlay := filepath.Join(dir, countingFile), filepath.Join(dir, "overlay.json")
	content, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(here, countingFile): mutant}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, mutant, withoutIncrement(t, i))
	write(t, overlay, content)
	cmd := exec.CommandContext(t.Context(), "go", "test", "-overlay", overlay, "-run", "^(TestVerdicts|TestRandomTraffic|TestLedgerDuringWrite|TestLedgerDuringPodWrite|TestJoined)$", ".")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
}

// increments calls visit with each statement that adds to a counter, and replaces it by what visit returns.
func increments(file *ast.File, visit func(ast.Stmt) ast.Stmt) {
	ast.Inspect(file, func(n ast.Node) bool {
		var list []ast.Stmt
		switch n := n.(type) {
		case *ast.BlockStmt:
			list = n.List
		case *ast.CaseClause:
			list = n.Body
		}
		for i, stmt := range list {
			if isIncrement(stmt) {
				list[i] = visit(stmt)
			}
		}
		return true
	})
}

func isIncrement(stmt ast.Stmt) bool {
	switch s := stmt.(type) {
	case *ast.IncDecStmt:
		return s.Tok == token.INC
	case *ast.AssignStmt:
		return s.Tok == token.ADD_ASSIGN
	}
	return false
}

func parseCountingFile(t *testing.T) (*token.FileSet, *ast.File) {
	t.Helper()
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, countingFile, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	return fset, file
}

func incrementLines(t *testing.T) []int {
	t.Helper()
	fset, file := parseCountingFile(t)
	var lines []int
	increments(file, func(s ast.Stmt) ast.Stmt {
		lines = append(lines, fset.Position(s.Pos()).Line)
		return s
	})
	return lines
}

// withoutIncrement returns the counting file with the i-th increment never run.
func withoutIncrement(t *testing.T, i int) []byte {
	t.Helper()
	fset, file := parseCountingFile(t)
	n := 0
	increments(file, func(s ast.Stmt) ast.Stmt {
		n++
		if n-1 != i {
			return s
		}
		return &ast.IfStmt{Cond: ast.NewIdent("false"), Body: &ast.BlockStmt{List: []ast.Stmt{s}}}
	})
	var out bytes.Buffer
	if err := printer.Fprint(&out, fset, file); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
