PYTHON ?= python3

.PHONY: sweep test check
sweep: .venv/installed ## set up and run four runs on embedded data
	.venv/bin/python src/train.py -m model.kernel_size=5,9 model.depth=8,16

test: .venv/installed ## set up and pass the tests
	.venv/bin/python -m pytest -n 4 --maxschedchunk 1

check: .venv/installed ## lint and type check
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q --upgrade pip
	.venv/bin/pip install -q -r requirements.txt
	touch .venv/installed
