# make demo    the main job on real input, in under three minutes
# make test    everything but the long tests; make test-long those
# make crash-long   power failures, millions; make mutants   whether the crash tests notice a fault

# make soak    everything at once on one mount for SOAK_SECONDS (an hour); SOAK_FLAGS=--sanitized: also no leak
# make check   linters, types, warnings as errors, static analysis
# make bench   the benchmarks against other file systems, quick (needs root); make bench-full those of hours
# make fuzz    libFuzzer on images and requests: FUZZ_INPUTS of each, FUZZ_SECONDS for each at most
# Everything is set up first by itself: Debian packages, .venv, the C extensions.

PYTHON_VENV := .venv/bin/python
C_FILES := $(sort $(wildcard btree/native/*.c cowfs/native/*.c))
H_FILES := $(sort $(wildcard btree/native/*.h cowfs/native/*.h))
BUILD_STAMP := build/.extensions

.PHONY: all setup build test test-long crash-long mutants check demo setup-bench bench bench-full clean fuzz soak

all: build

setup:
	@tools/set_up.sh

# Byte code as an installation has it: without, where the environment forbids the interpreter to write any, each command
# compiles what it imports, and a mount takes 50 ms longer.
build: setup
	@$(MAKE) --no-print-directory $(BUILD_STAMP)
	@$(PYTHON_VENV) -m compileall -q btree cowfs tools tests benchmarks

# The stamp hangs on the virtual environment too: another interpreter needs other extensions.
$(BUILD_STAMP): $(C_FILES) $(H_FILES) setup.py .venv/pyvenv.cfg
	$(PYTHON_VENV) setup.py --quiet build_ext --inplace --force -j2
	@mkdir -p build && touch $@

test: build
	$(PYTHON_VENV) -m pytest $(PYTEST_FLAGS)

test-long: build
	$(PYTHON_VENV) -m pytest -m long $(PYTEST_FLAGS)

# Power failures without end: CRASH_FLAGS="--states 2000000 --seeds 2000 --jobs 2" are the defaults.
crash-long: build
	$(PYTHON_VENV) -m tests.crash.enumerator $(CRASH_FLAGS)

# Every fault that a test build can switch on, and whether the crash tests notice.
mutants: build
	$(PYTHON_VENV) -m pytest -m long tests/crash/test_mutants.py $(PYTEST_FLAGS)

SOAK_SECONDS := 3600

soak: build
	$(PYTHON_VENV) -m tools.soak --seconds $(SOAK_SECONDS) $(SOAK_FLAGS)

FUZZ_INPUTS := 1000000
FUZZ_SECONDS := 3600

fuzz:
	@tools/set_up.sh fuzz
	$(PYTHON_VENV) -m tests.fuzz --inputs $(FUZZ_INPUTS) --seconds $(FUZZ_SECONDS) $(FUZZ_FLAGS)

check: build
	tools/check.sh

demo: build
	@$(PYTHON_VENV) -m tools.demo

# The file systems compared with, and what draws the plots.
setup-bench:
	@tools/set_up.sh bench

CEILING := build/ceiling
CEILING_FILES := $(sort $(wildcard benchmarks/ceiling/*.c benchmarks/ceiling/*.h))

$(CEILING): $(CEILING_FILES)
	@mkdir -p build
	gcc -std=gnu11 -O2 -g -pthread -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -o $@.new \
		$(filter %.c,$^) -luring
	@mv $@.new $@

bench bench-full: setup-bench build $(CEILING)
	$(PYTHON_VENV) -m benchmarks $(if $(filter bench-full,$@),--full) $(BENCH_FLAGS)

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f btree/*.so cowfs/*.so
	find . -path ./.venv -prune -o -name __pycache__ -type d -print | xargs rm -rf
