# make demo   a real image folder, converted, looked at, and trained on
# make test   the tests
# make check  linters, types, layers, tests
# make bench  the figures in README, measured here; bench-quick: mmds beside the libraries that are installed, in 2 minutes

PYTHON ?= python3
PIP = .venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check lint bench bench-quick stress clean

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mmds needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(PIP) --editable '.[dev]'
	@touch $@

demo: .venv/ready
	.venv/bin/python -m examples.pictures .demo/pictures
	.venv/bin/mmds convert .demo/pictures .demo/pictures.mmds --overwrite
	.venv/bin/mmds info .demo/pictures-train.mmds
	.venv/bin/mmds verify .demo/pictures-train.mmds
	.venv/bin/python -m examples.train_cnn .demo/pictures-train.mmds .demo/pictures-val.mmds

test: .venv/ready
	.venv/bin/python -m pytest -m "not stress" -n logical --dist worksteal

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

check: lint test

stress: .venv/ready
	.venv/bin/python -m pytest -m stress

bench: .venv/ready
	.venv/bin/python -m benchmarks
	.venv/bin/python -m benchmarks.reading
	.venv/bin/python -m benchmarks.conversion
	.venv/bin/python -m benchmarks.pipeline
	.venv/bin/python -m benchmarks.copying
	.venv/bin/python -m benchmarks.keys
	.venv/bin/python -m benchmarks.memory.workers
	.venv/bin/python -m benchmarks.memory.lists
	.venv/bin/python -m benchmarks.memory.limits
	.venv/bin/python -m benchmarks.memory.pool
	.venv/bin/python -m benchmarks.memory.cached
	.venv/bin/python -m benchmarks.stores
	.venv/bin/python -m benchmarks.transport
	.venv/bin/python -m benchmarks.images
	.venv/bin/python -m benchmarks.scaling
	.venv/bin/python -m benchmarks.shuffle

bench-quick: .venv/ready
	.venv/bin/python -m benchmarks --quick

clean:
	rm -rf .venv .demo build dist *.egg-info
