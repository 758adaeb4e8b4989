package impair

import (
	"container/heap"
	"time"
)

// heldFrame waits for its time. Of those due at once the first to come is the first to go.
type heldFrame struct {
	frame  []byte
	due    time.Time
	serial uint64
}

// queue is ordered by due, the next one first. Its methods but push and pop are container/heap's.
type queue []heldFrame

func (q *queue) push(f heldFrame) { heap.Push(q, f) }
func (q *queue) pop() heldFrame   { return heap.Pop(q).(heldFrame) }

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	if q[i].due.Equal(q[j].due) {
		return q[i].serial < q[j].serial
	}
	return q[i].due.Before(q[j].due)
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(heldFrame)) }
func (q *queue) Pop() any {
	old := *q
	last := old[len(old)-1]
	old[len(old)-1] = heldFrame{}
	*q = old[:len(old)-1]
	return last
}
