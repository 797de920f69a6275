# make run: a local node to try. make test: all tests. The others: see "make help".
.DEFAULT_GOAL := help
.PHONY: help run stop needs test lint types docs deb test-package dist simulate chaos reliability bench clean

PYTHON ?= python3
export PYTHON
VENV := .venv/bin
SECONDS_OF_TESTS ?= 2400
TESTS ?= tests
SEEDS ?= 200
MINUTES ?= 5
BENCH ?= --json build/benchmarks.json

help:
	@echo "make run            install what is missing, start a local node below .run, show it"
	@echo "make stop           stop that node"
	@echo "make test           install what is missing, run all tests (some of them: TESTS=tests.test_tree_operations)"
	@echo "make lint           style;  make types: static types"
	@echo "make docs           build/docs/html and build/docs/man, warnings are errors"
	@echo "make deb            the Debian package, in build/deb"
	@echo "make test-package   install that package into a fresh Debian root, run it, remove it (root; minutes)"
	@echo "make dist           wheel and source distribution, in dist"
	@echo "make simulate       simulated clusters (SEEDS=$(SEEDS))"
	@echo "make chaos          real clusters under faults (MINUTES=$(MINUTES))"
	@echo "make reliability    all crash points, longer loads, all of the POSIX suites (half an hour; stress-ng if it is there)"
	@echo "make bench          measurements (BENCH=--help tells which)"
	@echo "make clean          remove what was built"

run:
	@scripts/install-packages run
	@scripts/make-venv
	@scripts/start-local

stop:
	@scripts/stop-local

# What tests, lint, types and documentation need of the machine.
needs:
	@scripts/install-packages test
	@scripts/make-venv dev,docs

test: needs
	@$(VENV)/python scripts/run-tests --seconds $(SECONDS_OF_TESTS) $(if $(TOTALS),--totals $(TOTALS)) $(TESTS)

lint: needs
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .

types: needs
	$(VENV)/mypy

docs: needs
	$(VENV)/sphinx-build -W --keep-going -q -E -b html docs build/docs/html
	$(VENV)/sphinx-build -W --keep-going -q -E -b man docs build/docs/man
	@echo "build/docs/html/index.html, build/docs/man/"

deb:
	@scripts/install-packages deb
	@scripts/build-deb

test-package: deb
	@scripts/install-packages root
	@scripts/test-package

dist: needs
	$(VENV)/python -m build --outdir dist .

simulate: needs
	$(VENV)/python -m tests.simulate --seeds $(SEEDS)

chaos: needs
	$(VENV)/python -m tests.chaos --minutes $(MINUTES)

reliability: needs
	PVECFS_CRASH_POINTS=all PVECFS_POSIX=all PVECFS_LEAK_SECONDS=300 FUSE_PAIRS=all $(VENV)/python -m twisted.trial \
	    tests.test_store_crashpoints tests.test_posix tests.test_leaks tests.test_fuse_crossing
	if command -v stress-ng >/dev/null; then $(VENV)/python -m tests.posix.stress; fi

bench: needs
	$(VENV)/python -m benchmarks $(BENCH)

clean:
	rm -rf build dist debian/.debhelper debian/pvecfs debian/*.substvars debian/*.debhelper* debian/files debian/debhelper-build-stamp
	rm -rf .mypy_cache .ruff_cache _trial_temp* twisted/plugins/dropin.cache *.egg-info
