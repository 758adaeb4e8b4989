# make build   the binaries, in bin/
# make demo    three nodes, two pods each, on this machine: shows that it works (root);
#              FAMILY=v4|v6|dual BACKEND=vxlan|udp STORE=gossip|file ROUTED=true|false UNDERLAY=udp|packet
#              DEVICE=tap|tun|water
# make e2e-containers  containerd, runc and podman from Debian's packages on two nodes: containers that nothing was done for (root)
# make test    all tests (root)
# make sim     10,000 histories of the claim protocol (HISTORIES, SEED); one alone: make sim HISTORIES=1 SEED=n
# make nodes   10, 100 and 1,000 nodes in one process, on a fake clock (NODES): a table of what they cost; half an hour, 12 GB
# make cni-cycles   CYCLES (default 10000) containers added and deleted while plugins and daemon are killed (root)
# make fuzz    every fuzzer for FUZZTIME each (default 30s)
# make bench   kernel VXLAN, tulle and others in turns, in under 20 minutes, on a machine that does nothing else (root); bench-variants
#              tulle's devices, underlays and wire formats in 40 minutes, bench-full everything in about three hours, bench-quick two minutes to
#              see that it works. Results in $(BENCHOUT)/, see docs/benchmarks.md; BASELINE=old.json fails where it was faster
# make performance   docs/performance.md, from $(BENCHOUT)/table.json or RESULT=FILE and the curves beside it
# make chaos   faults, one every ten seconds for DURATION (default 30m), under traffic: does everything come back by itself? (root)
# make lint    gofmt, vet, staticcheck, import boundaries

GO       ?= go
FUZZTIME ?= 30s
FAMILY   ?= v4
BACKEND  ?= vxlan
STORE    ?= gossip
ROUTED   ?= false
DEVICE   ?= tap
UNDERLAY ?= udp
BENCHOUT ?= bench-out
DURATION ?= 30m
BASELINE ?=
HISTORIES ?= 10000
CYCLES   ?= 10000
SEED     ?= 1
NODES    ?= 10,100,1000
CURVES   := ^Benchmark(FIB|Peers|Lookup)$$
SIMULATED := ^Test(Histories|Majority|MutantsAreFound)$$
RACE_E2E := TestPods|TestRepair|TestRestartKeepsSubnet|TestHolderDies|TestTakeoverGivenUp
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
TOOL     := $(GO) tool -modfile=scripts/tools.mod

.PHONY: build demo chaos e2e-containers sim nodes cni-cycles test fuzz bench bench-variants bench-full bench-quick performance lint clean need-root

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/tulle ./cmd/tulle
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/tulle-cni ./cmd/tulle-cni

demo: need-root build
	$(GO) build -o bin/demo ./scripts/demo
	@bin/demo -tulle bin/tulle -family $(FAMILY) -backend $(BACKEND) -store $(STORE) -routed=$(ROUTED) -underlay $(UNDERLAY) -device $(DEVICE)

chaos: need-root build
	$(GO) build -o bin/chaos ./scripts/chaos
	@bin/chaos -tulle bin/tulle -duration $(DURATION) $(CHAOS)

e2e-containers: need-root build
	$(GO) build -o bin/containers ./scripts/containers
	@bin/containers -tulle bin/tulle

# The lab's tests take turns on the machine's namespaces, so the packages run one at a time. The end-to-end tests start a
# process for each command: all of them run without the race detector, and those with the most concurrency with it too. The simulator
# of the claim protocol has no goroutine.
test: need-root build
	$(GO) test -race -count=1 -p 1 -timeout 30m -skip '$(SIMULATED)' $$($(GO) list ./... | grep -v /cmd/)
	$(GO) test -count=1 -timeout 20m ./control/claim -run '$(SIMULATED)'
	$(GO) test -count=1 -timeout 10m ./control/gossip -run '^TestNodes$$' -nodes 100
	$(GO) test -count=1 -timeout 40m ./cmd/...
	$(GO) test -race -count=1 -timeout 20m -run '^($(RACE_E2E))$$' ./cmd/...

sim:
	$(GO) test -count=1 -timeout 60m ./control/claim -run '^TestHistories$$' -histories $(HISTORIES) -seed $(SEED)

nodes:
	$(GO) test -count=1 -timeout 3h ./control/gossip -run '^TestNodes$$' -nodes $(NODES) -v

cni-cycles: need-root
	$(GO) test -count=1 -timeout 6h -v ./cmd/tulle -run '^TestCNICycles$$' -cycles $(CYCLES)

fuzz:
	@scripts/fuzz $(FUZZTIME)

bench:          PRESET = table
bench-variants: PRESET = variants
bench-full:     PRESET = full
bench-quick:    PRESET = quick
bench bench-variants bench-full bench-quick: need-root build
	@mkdir -p $(BENCHOUT)
	bin/tulle bench compare --preset $(PRESET) --save $(BENCHOUT)/$(PRESET).json $(if $(BASELINE),--baseline $(BASELINE))
	$(if $(filter full,$(PRESET)),$(GO) test -run '^$$' -bench '$(CURVES)' -count 3 ./dataplane/tables ./dataplane/conntrack >$(BENCHOUT)/curves.txt)
	$(if $(filter full quick,$(PRESET)),bin/tulle bench scale --preset $(PRESET) >$(BENCHOUT)/scale.txt)
	for form in html md txt; do bin/tulle bench report $(BENCHOUT)/$(PRESET).json -o $(BENCHOUT)/$(PRESET).$$form \
	  $(if $(filter full,$(PRESET)),--curves $(BENCHOUT)/curves.txt) $(if $(filter full quick,$(PRESET)),--curves $(BENCHOUT)/scale.txt) || exit 1; done

RESULT      ?= $(BENCHOUT)/table.json
CURVES_FROM ?= $(wildcard $(BENCHOUT)/curves.txt $(BENCHOUT)/scale.txt)
performance: build
	bin/tulle bench report $(RESULT) --without-trials $(foreach file,$(CURVES_FROM),--curves $(file)) -o docs/performance.json
	bin/tulle bench report docs/performance.json -o docs/performance.md

lint:
	@test -z "$$(gofmt -l .)" || { gofmt -l . ; echo "not gofmt-ed: run gofmt -w on these" ; exit 1 ; }
	$(GO) vet ./...
	$(TOOL) staticcheck ./...
	$(TOOL) go-arch-lint check --output-color=false

clean:
	rm -rf bin

need-root:
	@test "$$(id -u)" = 0 || { echo "make needs root for this (namespaces, TAP devices): run it with sudo" >&2 ; exit 2 ; }
