package result

import "strings"

// words are what parts of figures' names stand for.
var words = map[string]string{
	"tcp": "TCP stream", "tcp-rr": "TCP request and response", "tcp-crr": "TCP connect, request and response",
	"udp-64B": "UDP of 64 bytes", "udp-64B-gso": "UDP of 64 bytes, sent with UDP_SEGMENT", "udp-imix": "UDP of mixed sizes",
	"udp-512B": "UDP of 512 bytes", "udp-1400B": "UDP of 1,400 bytes", "udp-9000B": "UDP of 9,000 bytes, in fragments",
	"flood": "delivered when flooded", "no-drop": "highest rate with nothing lost", "0.5%-drop": "highest rate with 0.5% lost",
	"cpu": "CPU time of the whole machine", "delay": "one-way delay", "round-trip": "round trip",
	"fib": "FIB lookup", "conntrack": "conntrack", "allocs": "allocations of the daemons", "daemon-cpu": "CPU time of the daemons",
	"memory": "memory", "load": "a load of a word, each where the last one says", "v4": "IPv4", "v6": "IPv6",
	"10%-load": "at 10% of the no-drop rate", "50%-load": "at half the no-drop rate", "90%-load": "at 90% of the no-drop rate",
}

// Explain says in words what a figure's name means.
func Explain(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		if w, ok := words[p]; ok {
			p = w
		} else if n, found := strings.CutSuffix(p, "-flow"); found {
			p = n + " flow"
		} else if n, found := strings.CutSuffix(p, "-flows"); found {
			p = n + " flows"
		} else if n, found := strings.CutSuffix(p, "-routes"); found {
			p = n + " routes"
		} else if n, found := strings.CutSuffix(p, "-used"); found {
			p = n + " of them in use"
		}
		parts[i] = p
	}
	return strings.Join(parts, ", ")
}
