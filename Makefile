# Each target works on a fresh Debian 12 with make, curl and root or sudo: the scripts install what is missing and say so.
SHELL := /bin/bash
PROFILE ?= dist
PREFIX ?= /usr/local
export PROFILE PREFIX

.PHONY: help demo test soak image image-agent bench profile fuzz install uninstall

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST)

demo: ## a program in a sealed bottle, end to end, with a transcript
	@bash scripts/demo.sh

test: ## everything that CI checks
	@bash .ci/run

soak: ## the bundle's stories with full counts; writes docs/soak.md
	@bash scripts/soak.sh

image: ## the bundle image, with Docker (PROFILE=dev for a quick one, BASE_IMAGE=... to choose the base)
	@bash scripts/image.sh

image-agent: ## the image of the agent's container, with Docker: Node, git, Claude Code (BASE_IMAGE=... to choose the base)
	@bash scripts/agent-image.sh

bench: ## the benchmarks
	@bash scripts/bench.sh

profile: ## egress' profile for the compiler anew, after its hot paths or the toolchain changed
	@bash scripts/profile-egress.sh

fuzz: ## the fuzz targets, bounded, and the property tests with many cases (FUZZ_SECONDS, FUZZ_CASES)
	@bash scripts/fuzz.sh

install: ## bottlecap and its daemons under PREFIX (/usr/local)
	@bash scripts/install.sh

uninstall: ## what `make install` put there
	@bash scripts/install.sh --remove
