package result

import "io"

func (r *Result) WriteHTML(w io.Writer) error { return r.WriteMarkdown(w) }
