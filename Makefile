# The project's commands. All but `help` and `clean` make .venv first where it is missing or out of date.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup repro plan export test lint bench clean

# dvc.yaml says `python -m stages.…`: that python is the one of .venv.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export VIRTUAL_ENV := $(CURDIR)/.venv
# Both are handed to recipes as they are, so that a file name with spaces stays one word.
export PRESET FORCE

help:
	@printf '%s\n' \
	  'make repro                           run the pipeline: only what a change touches' \
	  'make repro PRESET=presets/<x>.yaml   copy that preset over params.yaml first (FORCE=1: even over edits)' \
	  'make plan                            what the model calls will take: requests, tokens, time, money' \
	  'make export                          training sets for other trainers, in exports/; ARGS=committee for one variant' \
  'make export ARGS=--models            the tuned models with their scores in their cards, ready for the hub' \
  'make test                            run every test; ARGS="-m '"'not slow'"'" leaves the slow ones out' \
	  'make lint                            ruff and mypy' \
	  'make bench                           run the benchmarks in bench/' \
	  'make setup                           make .venv (the others call it)' \
	  'make clean                           remove caches of tools; no data, models or .venv'

setup:
	@scripts/setup.sh

repro: setup
	@git rev-parse --git-dir >/dev/null 2>&1 || { \
	  echo "error: this folder is no git repository and DVC needs one: git init && git add -A && git commit -m start" >&2; \
	  exit 2; }
	@if [ -n "$$PRESET" ]; then scripts/preset.sh "$$PRESET"; fi
	@python -m stages.check
	@python scripts/mend.py
	@start=$$(mktemp); trap 'rm -f "$$start"' EXIT; python -m dvc repro; \
	if [ report.md -ot "$$start" ]; then cat report.md; fi; \
	echo "The page: $(CURDIR)/report.html"

plan: setup
	@python -m stages.plan $(ARGS)

export: setup
	@python -m stages.export $(ARGS)

test: setup
	@python -m pytest $(ARGS)

lint: setup
	@python -m ruff check .
	@python -m ruff format --check .
	@python -m mypy

bench: setup
	@for name in client ledger select generate train; do echo "bench: $$name"; python -m bench.$$name; done

clean:
	@rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis build ./*.egg-info
	@find . -path ./.venv -prune -o -path ./.git -prune -o -path ./.dvc -prune -o -name __pycache__ -type d -print0 \
	  | xargs -0 rm -rf
