package control

import (
	"errors"
	"testing"
)

// What goes wrong in a pod's namespace, where the pod may do as it likes, is told, and is no error of the node's; the next pod has its turn.
func TestLimitsInPods(t *testing.T) {
	var told []error
	tried := 0
	pod := func(err error) Pod {
		return Pod{Limits: Limits{In: Limit{Rate: 1e6, Burst: 1e6}, Own: &OwnEnd{
			Within: func(func() error) error { tried++; return err },
			Failed: func(err error) { told = append(told, err) },
		}}}
	}
	spoilt := errors.New("spoilt")
	changed, err := Kernel{Pods: []Pod{pod(spoilt), pod(nil), {}}}.applyLimits(nil)
	if changed || err != nil || tried != 2 || len(told) != 1 || told[0] != spoilt {
		t.Errorf("changed %t, error %v, %d tried, told %v", changed, err, tried, told)
	}
}
