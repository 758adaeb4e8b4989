# make build   the binaries, in bin/
# make demo    three nodes, two pods each, on this machine: shows that it works (root);
#              FAMILY=v4|v6|dual BACKEND=vxlan|udp STORE=gossip|file ROUTED=true|false UNDERLAY=udp|packet
#              DEVICE=tap|tun|water
# make test    all tests (root)
# make fuzz    every fuzzer for FUZZTIME each (default 30s)
# make lint    gofmt, vet, staticcheck, import boundaries

GO       ?= go
FUZZTIME ?= 30s
FAMILY   ?= v4
BACKEND  ?= vxlan
STORE    ?= gossip
ROUTED   ?= false
DEVICE   ?= tap
UNDERLAY ?= udp
RACE_E2E := TestPods|TestRepair|TestRestartKeepsSubnet
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
TOOL     := $(GO) tool -modfile=scripts/tools.mod

.PHONY: build demo test fuzz lint clean need-root

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/tulle ./cmd/tulle

demo: need-root build
	$(GO) build -o bin/demo ./scripts/demo
	@bin/demo -tulle bin/tulle -family $(FAMILY) -backend $(BACKEND) -store $(STORE) -routed=$(ROUTED) -underlay $(UNDERLAY) -device $(DEVICE)

# The lab's tests take turns on the machine's namespaces, so the packages run one at a time. The end-to-end tests start a
# process for each command: all of them run without the race detector, and those with the most concurrency with it too.
test: need-root build
	$(GO) test -race -count=1 -p 1 -timeout 30m $$($(GO) list ./... | grep -v /cmd/)
	$(GO) test -count=1 -timeout 40m ./cmd/...
	$(GO) test -race -count=1 -timeout 20m -run '^($(RACE_E2E))$$' ./cmd/...

fuzz:
	@scripts/fuzz $(FUZZTIME)

lint:
	@test -z "$$(gofmt -l .)" || { gofmt -l . ; echo "not gofmt-ed: run gofmt -w on these" ; exit 1 ; }
	$(GO) vet ./...
	$(TOOL) staticcheck ./...
	$(TOOL) go-arch-lint check --output-color=false

clean:
	rm -rf bin

need-root:
	@test "$$(id -u)" = 0 || { echo "make needs root for this (namespaces, TAP devices): run it with sudo" >&2 ; exit 2 ; }
