# SPDX-License-Identifier: MPL-2.0
#
# One command for each habit; `make help` lists them. None needs a variable exported before. The work
# is done by scripts/: a recipe here only names it, so that a person can run the same by hand.

SHELL := /bin/sh
.DEFAULT_GOAL := help
# Set-up, build and tests each use all cores by themselves; in parallel they would only trip over apt's
# lock and cargo's.
.NOTPARALLEL:

# Rust as rustup installs it is found without a new login, and before a distribution's older one.
CARGO_BIN := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin
ifeq ($(findstring :$(CARGO_BIN):,:$(PATH):),)
export PATH := $(CARGO_BIN):$(PATH)
endif

# Handed to the scripts by the environment, where no blank and no quote in a name does harm.
PREFIX ?= /usr/local
export PREFIX DESTDIR PURGE FILE CUDA GPU

.PHONY: help setup setup-test build models demo check lint test bench bench-registry bench-diarize bench-live bench-voices bench-enrol soak accident fuzz contract-124 inspect run dist install \
	uninstall clean

help: ## this list
	@echo 'scribe: decoded audio in, words with times out. First: make demo'
	@echo
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1\t\2/p' Makefile | while IFS="$$(printf '\t')" read -r name what; do \
		printf '  make %-14s %s\n' "$$name" "$$what"; done

setup: ## install what building and running need (Debian 12, Ubuntu 24.04)
	@scripts/setup.sh

setup-test: ## install what the tests need on top
	@scripts/setup.sh --test

build: setup ## plugin and programs for this machine, in target/release; GPU=cuda gets an ONNX Runtime for NVIDIA cards, CUDA=1 builds whisper.cpp for them
	@scripts/build.sh

models: build ## the default models and ONNX Runtime
	@scripts/models.sh

demo: models ## captions of a recording in the terminal, and as .vtt, .srt and .json in demo-output
	@scripts/demo.sh

check: setup-test ## formatting, clippy, licences, documentation, scripts
	@scripts/check.sh

lint: check

test: setup-test ## set-up, check, models, and all tests: what CI runs
	@scripts/check.sh
	@scripts/build.sh
	@scripts/models.sh whisper-tiny.en-onnx-f32 whisper-tiny.en-onnx-f16 silero-vad-6.2-sequence
	@scripts/test.sh

bench: setup-test models ## figures for docs/benchmarks.md
	@scripts/hook.sh bench

bench-registry: models ## figures for docs/memory.md: 1 to 16 transcribers, a live stream beside 15 files
	@scripts/bench-registry.sh

bench-diarize: models ## figures of the diarizer for docs/benchmarks.md, beside pyannote.audio (3 GB, once)
	@scripts/bench-diarize.sh

bench-live: models ## figures of live captions for docs/benchmarks.md, in real time (after bench)
	@scripts/bench-live.sh

bench-voices: models ## figures of recognition for docs/benchmarks.md: speakers by seconds, conversations by name
	@scripts/bench-voices.sh

bench-enrol: build models ## enrolment and names through the elements, for docs/benchmarks.md (after bench-voices)
	@scripts/bench-enrol.sh

accident: build ## the out-of-memory accident replayed on a made-up card, with and without the registry
	@scripts/accident.sh

soak: models ## the tests that take hours
	@scripts/hook.sh soak

fuzz: ## the reader of ggml files against anything, ten minutes; needs crates.io once
	@scripts/fuzz.sh

contract-124: setup-test ## the newest transcriberbin around scribetranscriber, on GStreamer 1.24; NOT RUN where that cannot be had
	@scripts/contract-124.sh

inspect: build ## what gst-inspect-1.0 says of the plugin just built; ELEMENT=… for one element
	@scripts/inspect.sh $(ELEMENT)

run: models ## captions of FILE=… on the terminal
	@if [ -z "$$FILE" ]; then echo 'scribe: no file given' >&2; \
		echo '  remedy: make run FILE=talk.mp3' >&2; exit 1; fi
	@pipelines/file_to_terminal.sh "$$FILE"

dist: setup ## portable build (x86-64 with AVX2) and its archive, in target-dist
	@scripts/dist.sh

install: ## plugin, ONNX Runtime, models, programs into PREFIX=… (default /usr/local) or USER=1
	@FOR_USER='$(filter 1,$(USER))' scripts/install.sh

uninstall: ## exactly what install put there; models too with PURGE=1
	@FOR_USER='$(filter 1,$(USER))' scripts/uninstall.sh

clean: ## everything built; models stay
	rm -rf target target-dist demo-output
