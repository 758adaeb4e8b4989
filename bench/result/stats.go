package result

import (
	"math"
	"slices"
)

// Spread is the middle and the ends of some values; zero for none.
type Spread struct {
	N                int
	Median, Min, Max float64
}

func spread(values []float64) Spread {
	if len(values) == 0 {
		return Spread{}
	}
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return Spread{N: n, Median: (v[(n-1)/2] + v[n/2]) / 2, Min: v[0], Max: v[n-1]}
}

// Percent is half the way from Min to Max in percent of the median.
func (s Spread) Percent() float64 {
	if s.Median == 0 {
		return 0
	}
	return math.Abs(s.Max-s.Min) / 2 / math.Abs(s.Median) * 100
}

// maxSamples bounds the exact test: C(20, 10) is 184,756 ways.
const maxSamples = 10

// smaller is the one-sided p of Mann and Whitney's test that a tends to be smaller than b: the exact part of all ways to deal the
// values to two groups of these sizes that give a rank sum as small as a's or smaller. Ties have their mean rank. Of groups of
// more than ten the first ten count.
func smaller(a, b []float64) float64 {
	a, b = a[:min(len(a), maxSamples)], b[:min(len(b), maxSamples)]
	if len(a) == 0 || len(b) == 0 {
		return 1
	}
	ranks := ranksOf(append(slices.Clone(a), b...))
	observed := 0.0
	for _, r := range ranks[:len(a)] {
		observed += r
	}
	as, all := deal(ranks, len(a), observed)
	return float64(as) / float64(all)
}

// deal counts the ways to choose n of ranks, and those among them whose sum is at most limit.
func deal(ranks []float64, n int, limit float64) (within, all int) {
	const rounding = 1e-9
	switch {
	case n == 0 && limit >= -rounding:
		return 1, 1
	case n == 0:
		return 0, 1
	case n > len(ranks):
		return 0, 0
	}
	w1, a1 := deal(ranks[1:], n-1, limit-ranks[0])
	w2, a2 := deal(ranks[1:], n, limit)
	return w1 + w2, a1 + a2
}

func ranksOf(values []float64) []float64 {
	ranks := make([]float64, len(values))
	for i, v := range values {
		below, equal := 0, 0
		for _, w := range values {
			if w < v {
				below++
			} else if w == v {
				equal++
			}
		}
		ranks[i] = float64(below) + float64(equal+1)/2
	}
	return ranks
}
