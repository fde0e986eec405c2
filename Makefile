# make demo    the main job on real input, in under three minutes
# make test    everything but the long tests; make test-long those
# make check   linters, types, warnings as errors, static analysis
# make bench   the benchmarks
# Everything is set up first by itself: Debian packages, .venv, the C extensions.

PYTHON_VENV := .venv/bin/python
C_FILES := $(sort $(wildcard btree/native/*.c cowfs/native/*.c))
H_FILES := $(sort $(wildcard btree/native/*.h cowfs/native/*.h))
BUILD_STAMP := build/.extensions

.PHONY: all setup build test test-long check demo bench clean

all: build

setup:
	@tools/set_up.sh

build: setup
	@$(MAKE) --no-print-directory $(BUILD_STAMP)

# The stamp hangs on the virtual environment too: another interpreter needs other extensions.
$(BUILD_STAMP): $(C_FILES) $(H_FILES) setup.py .venv/pyvenv.cfg
	$(PYTHON_VENV) setup.py --quiet build_ext --inplace --force
	@mkdir -p build && touch $@

test: build
	$(PYTHON_VENV) -m pytest $(PYTEST_FLAGS)

test-long: build
	$(PYTHON_VENV) -m pytest -m long $(PYTEST_FLAGS)

check: build
	tools/check.sh

demo: build
	@$(PYTHON_VENV) -m tools.demo

bench: build
	$(PYTHON_VENV) -m benchmarks

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f btree/*.so cowfs/*.so
	find . -path ./.venv -prune -o -name __pycache__ -type d -print | xargs rm -rf
