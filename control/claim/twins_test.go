package claim

import (
	"net/netip"
	"testing"
	"time"
)

func TestTwins(t *testing.T) {
	self := &Record{Epoch: 5, Nonce: 5}
	at := func(r Record) *Record { r.Endpoint = netip.MustParseAddrPort("192.0.2.9:7946"); return &r }
	earlier, later := at(Record{Epoch: 5, Nonce: 4}), at(Record{Epoch: 6})

	var moved Twins // this node's own last boot at its former address, for some seconds
	moved.Met(earlier, 0)
	moved.Met(earlier, 6*time.Second)
	if v := moved.Verdict(self, time.Minute); v != nil {
		t.Errorf("%+v", v)
	}
	var copied Twins
	copied.Met(earlier, 0)
	copied.Met(earlier, laterGivesWay)
	if v := copied.Verdict(self, laterGivesWay); v == nil || !v.Fresh {
		t.Errorf("the later boot does not give way: %+v", v)
	}
	var original Twins
	original.Heard(later, self)
	original.Met(later, 0)
	original.Met(later, laterGivesWay)
	if v := original.Verdict(self, laterGivesWay); v != nil {
		t.Errorf("the earlier boot gives way: %+v", v)
	}
	gone := at(Record{Epoch: 6, Seq: 2, Flags: FlagLeaving})
	original.Heard(gone, self)
	if v := original.Verdict(self, laterGivesWay); v == nil || v.Fresh || v.Above != gone {
		t.Errorf("the earlier boot does not take its identity back: %+v", v)
	}
	var both Twins
	both.Met(later, 0)
	both.Met(later, earlierGivesWay)
	if v := both.Verdict(self, earlierGivesWay); v == nil || !v.Fresh {
		t.Errorf("nobody gives way: %+v", v)
	}
}
