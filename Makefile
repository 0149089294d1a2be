# Everything sets itself up on a fresh Debian or Ubuntu machine as root and is quick the second time.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/pytest
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
ROOT_GROUPS := tests/conformance tests/integration
export PYTHONPATH := $(CURDIR)/snapshotter:$(CURDIR)

.PHONY: help setup apt peers chart-peers matrix-peers check lint lint-roles types imports unit test test-matrix test-package test-nodes cluster-programs test-cluster test-all cluster cluster-down demo bench package package-lock chart stubs clean

help: ## Say what there is.
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | awk -F':.*?## ' '{printf "  %-14s %s\n", $$1, $$2}'

setup: $(VENV)/.locked ## Packages and the virtual environment.

# What Debian brings: headers for pyfuse3, and the foreign programs that judge us. Only what is missing is installed.
apt:
	@missing=$$(comm -23 <(grep -vE '^(#|$$)' tests/support/apt-packages.txt | sort -u) \
	    <(dpkg-query -W -f '$${db:Status-Status} $${Package}\n' 2>/dev/null | sed -n 's/^installed //p' | sort -u)); \
	if [ -n "$$missing" ]; then \
	    [ "$$(id -u)" = 0 ] || { echo "as root: apt-get install $$missing" >&2; exit 1; }; \
	    apt-get update -qq; \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi

$(VENV)/.locked: uv.lock pyproject.toml tests/support/apt-packages.txt | apt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import uv' 2>/dev/null || $(BIN)/pip install -q "$$(sed -n 's/^    "\(uv>=[^"]*\)",$$/\1/p' pyproject.toml)"
	@UV_PROJECT_ENVIRONMENT=$(CURDIR)/$(VENV) $(BIN)/uv sync -q --frozen --inexact --no-install-project
	@printf '#!/bin/sh\nPYTHONPATH=%s exec %s -m apparate "$$@"\n' "$(CURDIR)/snapshotter" "$(CURDIR)/$(BIN)/python" >$(BIN)/apparate
	@chmod +x $(BIN)/apparate
	@touch $@

$(VENV)/.fuzz: $(VENV)/.locked
	@UV_PROJECT_ENVIRONMENT=$(CURDIR)/$(VENV) $(BIN)/uv sync -q --frozen --inexact --no-install-project --group fuzz
	@touch $@

matrix-peers: setup $(VENV)/.fuzz
	@$(BIN)/python -m tests.support.peers containerd-1.4.3 containerd-1.7.35 containerd-2.4.2 stargz-snapshotter estargz-convert \
	    go-containerregistry containers-image helm-3 helm-4

peers: setup ## Build the foreign programs that tests run beside us (cached by content).
	@$(BIN)/python -m tests.support.peers containerd-2.4.2 snapshotter-suite

chart-peers: setup
	@$(BIN)/python -m tests.support.peers helm-4
	@$(BIN)/python -m tests.support.openapi

check: setup lint types imports unit ## Lint, types, import contracts, unit tests: under a minute.

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check -q .

types: setup
	@$(BIN)/mypy

imports: setup | build
	@$(BIN)/lint-imports --no-cache >build/imports.txt 2>&1 || { cat build/imports.txt; exit 1; }

unit: setup
	@$(PYTEST) -q -n 2 tests/unit

test: setup peers chart-peers ## What needs no node containers and no cluster.
	@$(BIN)/python -m tests.support.groups tests/unit tests/chart $(ROOT_GROUPS)

# All tests marked `matrix`, those in tests/matrix by themselves.
test-matrix: setup matrix-peers ## Other containerds, foreign tools, long kills, fuzzing, memory: 20 minutes, 6 more the first time.
	@MATRIX=1 $(BIN)/python -m tests.support.groups $(ROOT_GROUPS) tests/chart tests/matrix

# PACKAGES=dist tests what is there already.
test-package: setup $(VENV)/.package ## The host package on foreign hosts, its forms and its installation: 4 minutes.
	@$(BIN)/python -m tests.support.groups tests/package

lint-roles: setup ## Lint of roles and playbooks: half a minute.
	@PATH="$$($(BIN)/python -m tests.support.nodes tools):$$PATH"; export PATH; \
	yamllint -s roles playbooks inventory tests/molecule && ansible-lint -q --offline --profile production roles playbooks

# SCENARIOS="debian running" runs only these; KEEP=1 leaves the nodes for a look inside. The second package is what is upgraded to.
test-nodes: setup package lint-roles ## Roles on podman nodes with systemd: 13 minutes, 5 more the first time.
	@$(MAKE) -s package VERSION=1000.0.0 OUT=build/next
	@NODE_PACKAGES=$(CURDIR)/dist NODE_PACKAGES_NEXT=$(CURDIR)/build/next \
	    $(BIN)/python -m tests.support.nodes test $(SCENARIOS) $(if $(KEEP),--keep)

# The programs of Kubernetes are built from source once for a machine: 20 minutes of processor time.
cluster-programs: setup
	@$(BIN)/python -m tests.support.cluster build

test-cluster: setup package cluster-programs ## The chart and lazy pods on a real Kubernetes: 12 minutes, 30 more the first time.
	@$(MAKE) -s package VERSION=1000.0.0 OUT=build/next
	@$(BIN)/python -m tests.support.groups tests/cluster

cluster: setup package cluster-programs ## A Kubernetes for you, with everything installed: two minutes, 30 more the first time.
	@$(BIN)/python -m tests.support.cluster up

cluster-down: setup ## Take it away.
	@$(BIN)/python -m tests.support.cluster down

test-all: test test-matrix test-package test-nodes test-cluster ## All of these, the fast groups first.

demo: setup peers ## Convert a real image and start it on data loaded while it runs.
	@$(BIN)/python -m tests.benchmark.demo

bench: setup peers ## Compare with the peers; QUICK=1 for one image and one link.
	@$(BIN)/python -m tests.benchmark.bench $(if $(QUICK),--quick)

$(VENV)/.package: $(VENV)/.locked
	@UV_PROJECT_ENVIRONMENT=$(CURDIR)/$(VENV) $(BIN)/uv sync -q --frozen --inexact --no-install-project --group package
	@touch $@

# FRESH=1 builds even if the cache outside the checkout has it; VERSION=1.2.3 calls it something else; OUT=dir puts it elsewhere.
package: setup $(VENV)/.package ## The host package: deb, rpm, tar.zst, OCI image, parts list and checksums in dist/.
	@PYTHONPATH=snapshotter/packaging $(BIN)/python -m hostpackage build \
	    $(if $(FRESH),--fresh) $(if $(VERSION),--version $(VERSION)) $(if $(OUT),--out $(OUT))

# With the machine's helm if it has one.
chart: setup ## The chart, dist/apparate-1.0.0.tgz.
	@helm=$$(command -v helm) || helm=$$($(BIN)/python -m tests.support.peers helm-4 | cut -d' ' -f2)/helm; \
	mkdir -p dist && $$helm package chart -d dist

package-lock: setup ## Pin the Debian packages that are offered now.
	@PYTHONPATH=snapshotter/packaging $(BIN)/python -m hostpackage lock

stubs: setup ## Generate the gRPC stubs anew.
	@$(BIN)/python -m apparate.grpcapi.generate

clean: ## Remove what was built here; caches of peers stay.
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

build:
	@mkdir -p build
