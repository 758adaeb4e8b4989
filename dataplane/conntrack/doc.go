// Package conntrack owns the flow table: the one table of the packet path that many goroutines write.
//
// Workers look up and insert, an expiry goroutine sweeps, listings iterate, all at once. The table knows
// no frame bytes, no policy and no VTEP, and reads no clock: time is an argument, monotonic since an epoch that the
// caller chose, kept in whole seconds.
//
// Every flow is one slot of fixed size in one mapped memfd without pointers, so that the GC never scans it and a
// restarted daemon can take it over (Adopt). Both directions of a flow find the same slot.
//
// # Slots, homes and locks
//
// The table is open-addressed with at most half of the slots in use. A keyed hash gives a tuple its home slot; its entry lives
// in the first free one of the 24 slots of the home's probe sequence. The home's control word has a bit for each of
// them that is set iff an entry of this home lives there: a lookup visits only those, so that it is bounded, whether
// it hits or misses, without tombstones.
//
// The control word is also the slot's sequence lock. Who changes a slot takes its lock bit with a CAS and gives it
// back with the next sequence number; who reads it compares the control word before and after, and reads again when it
// changed. Adding and removing an entry needs the locks of its home and its slot. The second lock is only ever tried, and the
// first given back when that fails: nobody waits holding a lock.
//
// # TCP
//
// State and window follow Linux's nf_conntrack_proto_tcp.c and "Real Stateful TCP Packet Filtering in IP Filter"
// (van Rooij, 2000). Differences from Linux are told at their places in tcp.go.
package conntrack
