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
	var format, output string
	var curves []string
	var brief bool
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
			if err := benchReport(c.OutOrStdout(), path, format, output, curves, brief); err != nil {
				return fmt.Errorf("tulle bench report: %w", err)
			}
			return nil
		},
	}
	c.Flags().StringVar(&format, "format", "", "table, html, md (or markdown), gobench (for benchstat) or json (default: by the name of the file, else table)")
	c.Flags().StringVarP(&output, "output", "o", "", "file to write, .html, .md, .txt or .json (default: stdout)")
	c.Flags().StringArrayVar(&curves, "curves", nil, "output of go test -bench or tulle bench scale to add: what sizes cost, in html, md and json; may be repeated")
	c.Flags().BoolVar(&brief, "without-trials", false, "leave the raw trials out of the JSON: what the other forms are made from stays")
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

func benchReport(stdout io.Writer, path, format, output string, curves []string, brief bool) error {
	write, err := reportFormat(format, output)
	if err != nil {
		return err
	}
	r, err := result.Load(path)
	if err != nil {
		return err
	}
	for _, path := range curves {
		more, err := readCurves(path)
		if err != nil {
			return fmt.Errorf("--curves: %w", err)
		}
		r.Curves = append(r.Curves, more...)
	}
	if brief {
		r.Trials = []result.Trial{}
		if format == "json" || filepath.Ext(output) == ".json" {
			write = (*result.Result).WriteLines
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
	if format == "markdown" {
		format = "md"
	}
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
