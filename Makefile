# make demo   a real image folder, converted, looked at, and trained on
# make test   the tests
# make check  linters, types, layers, tests
# make coverage  branches of the format and of all that commits  make mutants  whether the tests of the format notice a change
# make faults  the tests of docs/reliability.md, and their counts into that page; make stress  all long sweeps
# make bench  the figures in README, measured here; bench-quick: mmds beside the libraries that are installed, in 2 minutes

PYTHON ?= python3
PIP = .venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test tools faults check lint coverage mutants bench bench-quick stress clean

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

# What faults are provoked with. Tests that need what is not there are skipped, and say so.
TOOLS = strace gcc mkfs.ext4
tools:
	@missing=$$(for tool in $(TOOLS); do command -v $$tool > /dev/null || echo $$tool; done); \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && apt-get update -qq && apt-get install -y -qq strace gcc libc6-dev e2fsprogs; then :; \
	else echo "not installed:" $$missing "- as root: apt-get install strace gcc libc6-dev e2fsprogs. Tests that need them are skipped"; fi

test: .venv/ready tools
	.venv/bin/python -m pytest -m "not stress" -n logical --dist worksteal

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

check: lint test

# atheris has no wheels for some platforms; its test says so there.
stress: .venv/ready tools
	-$(PIP) --only-binary atheris --editable '.[dev,fuzz]'
	.venv/bin/python -m pytest -m stress

faults: .venv/ready tools
	.venv/bin/python -m tests.faults -n logical --dist worksteal

# A minute's tests of what [tool.coverage] in pyproject.toml names; the system calls that fail take strace.
COVERAGE = canonical format golden hostile_fields hostile_frames hostile_index hostile_rules parse_branches \
	compression keys manifest publish_branches samplecache samplewriter shared_dataset shared_dataset_branches \
	staging writer
SLOW = spawn or 4096_fields or memory_stays_flat or test_kills or second_program or a_script_and or worker_processes

coverage: .venv/ready
	rm -rf .coverage
	.venv/bin/python -m coverage run -m pytest -q -m "not stress" -k "not ($(SLOW))" $(COVERAGE:%=tests/test_%.py)
	.venv/bin/python -m coverage combine -q
	.venv/bin/python -m coverage report

mutants: .venv/ready
	$(PIP) --editable '.[mutation]'
	.venv/bin/python -m tests.faults.mutation

bench: .venv/ready
	.venv/bin/python -m benchmarks
	.venv/bin/python -m benchmarks.reading
	.venv/bin/python -m benchmarks.conversion
	.venv/bin/python -m benchmarks.pipeline
	.venv/bin/python -m benchmarks.copying
	.venv/bin/python -m benchmarks.keys
	.venv/bin/python -m benchmarks.verified
	.venv/bin/python -m benchmarks.memory.workers
	.venv/bin/python -m benchmarks.memory.lists
	.venv/bin/python -m benchmarks.memory.limits
	.venv/bin/python -m benchmarks.memory.pool
	.venv/bin/python -m benchmarks.memory.cached
	.venv/bin/python -m benchmarks.stores
	.venv/bin/python -m benchmarks.transport
	.venv/bin/python -m benchmarks.images
	.venv/bin/python -m benchmarks.scaling
	.venv/bin/python -m benchmarks.scale
	.venv/bin/python -m benchmarks.shuffle

bench-quick: .venv/ready
	.venv/bin/python -m benchmarks --quick

clean:
	rm -rf .venv .demo build dist *.egg-info
