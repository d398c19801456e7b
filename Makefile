# The first Python that is new enough; PYTHON=… names another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null && echo $$python && break; done)
PYTEST = .venv/bin/python -m pytest -n 4 --dist loadgroup

.PHONY: help sweep test test-fast check constraints
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

sweep: .venv/running ## set up, then train four ConvMixers on embedded digits and compare them
	.venv/bin/python src/train.py -m model.kernel_size=5,9 model.depth=8,16

test: .venv/testing ## set up, then run all tests
	$(PYTEST)

test-fast: .venv/testing ## set up, then run four fifths of the tests: two minutes on two cores
	$(PYTEST) -n 2 -m "not slow"

check: .venv/testing ## set up, then format, lint and type check
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

constraints: .venv/testing ## pin requirements again after one has changed: versions and hashes for every platform
	.venv/bin/pip install -q uv
	.venv/bin/uv pip compile -q requirements-dev.txt --universal --python-version 3.11 --generate-hashes --no-annotate \
		--custom-compile-command "make constraints" -o constraints.txt

.venv/running: requirements.txt constraints.txt
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || \
		{ echo "PYTHON=$(PYTHON): Python 3.11 or newer is needed. Fix: make PYTHON=/path/to/python3.13"; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q pip==26.3
	.venv/bin/pip install -q --require-hashes -r requirements.txt -c constraints.txt
	touch $@

.venv/testing: .venv/running requirements-dev.txt
	.venv/bin/pip install -q --require-hashes -r requirements-dev.txt -c constraints.txt
	touch $@
