# The one place to start things from; `make` alone lists what there is.
# CI runs the same targets (.ci/run).

CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/sheepdog/target
export CARGO_TARGET_DIR
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help demo test check bench prove sim fuzz setup

help: ## this list
	@echo 'sheepdog: highly available block storage (Linux only)'
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'
	@echo 'Built files go to $(CARGO_TARGET_DIR).'

demo: setup ## three sheep, a guest that boots from them, and two killed under it (3 min)
	@cargo build --workspace --bins --profile quick
	@tests/demo "$(CARGO_TARGET_DIR)/quick"

test: setup ## every test; the last line is the totals
	@tests/run

check: ## formatting, lints, docs, dependency policy; changes nothing in the tree
	@tests/setup check
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo clippy --workspace --all-targets --locked --profile quick -- -D warnings
	RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' cargo doc --workspace --no-deps --document-private-items --locked --profile quick
	cargo deny --locked --log-level error check bans licenses sources

bench: setup ## speed against nbdkit and qemu-nbd, then the criterion benches (1 h)
	@cargo build --workspace --bins --release
	@tests/bench/bench "$(CARGO_TARGET_DIR)/release"

prove: setup ## the long proofs, in parts of at most an hour that need not be run twice
	@cargo build --workspace --bins --profile quick
	@tests/prove "$(CARGO_TARGET_DIR)/quick"

sim: setup ## whole rings in one process under seeded faults (SEED=s, SEEDS=n FIRST=s)
	@tests/sim

fuzz: ## fuzz targets under libFuzzer (TARGET=name, SECONDS=n each; INPUT=file to see a failure again)
	@tests/setup fuzz
	@FUZZ_SECONDS=$(SECONDS) tests/fuzz

setup: ## installs what is missing (apt, rustup, cargo) and says what
	@tests/setup
