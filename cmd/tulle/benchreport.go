package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tulle-net/tulle/bench/result"
)

// reportFormats are how a result can be shown, and by which end of a file's name each is known.
var reportFormats = []struct {
	name, extension string
	write           func(*result.Result, io.Writer) error
}{
	{"table", "", (*result.Result).WriteTable},
	{"html", ".html", (*result.Result).WriteHTML},
	{"md", ".md", (*result.Result).WriteMarkdown},
	{"gobench", ".txt", (*result.Result).WriteGoBench},
	{"json", ".json", func(r *result.Result, w io.Writer) error { return writeJSON(w, r) }},
}

func newBenchReportCommand() *cobra.Command {
	var format, output, curves string
	c := &cobra.Command{
		Use:   "report [FILE]",
		Short: "Show a result.json as a table, a page or the input of benchstat",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError("tulle bench report: give one result.json, not %d", len(args))
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			path := "result.json"
			if len(args) > 0 {
				path = args[0]
			}
			if err := benchReport(c.OutOrStdout(), path, format, output, curves); err != nil {
				return fmt.Errorf("tulle bench report: %w", err)
			}
			return nil
		},
	}
	c.Flags().StringVar(&format, "format", "", "table, html, md, gobench (for benchstat) or json (default: by the name of the file, else table)")
	c.Flags().StringVarP(&output, "output", "o", "", "file to write, .html, .md, .txt or .json (default: stdout)")
	c.Flags().StringVar(&curves, "curves", "", "output of go test -bench to add: what the size of tables costs, in html, md and json")
	return c
}

func readCurves(path string) ([]result.Curve, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return result.ReadCurves(f)
}

func benchReport(stdout io.Writer, path, format, output, curves string) error {
	write, err := reportFormat(format, output)
	if err != nil {
		return err
	}
	r, err := result.Load(path)
	if err != nil {
		return err
	}
	if curves != "" {
		if r.Curves, err = readCurves(curves); err != nil {
			return fmt.Errorf("--curves: %w", err)
		}
	}
	if output == "" {
		return write(r, stdout)
	}
	f, err := os.Create(output)
	if err != nil {
		return err
	}
	if err := write(r, f); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

func reportFormat(format, output string) (func(*result.Result, io.Writer) error, error) {
	var names []string
	for _, f := range reportFormats {
		if f.name == format || format == "" && f.extension == filepath.Ext(output) {
			return f.write, nil
		}
		names = append(names, f.name)
	}
	if format == "" {
		return nil, usageError("-o %s: what format? Give --format (allowed: %s)", output, strings.Join(names, ", "))
	}
	return nil, usageError("--format %s: unknown format (allowed: %s)", format, strings.Join(names, ", "))
}
