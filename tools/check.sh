#!/bin/sh
# Linters, types, warnings as errors, static analysis, and the tests that hold what can be held of docs/C_STYLE.md.
# Reports everything it finds before it fails.
set -u
cd "$(dirname "$0")/.."

PYTHON=.venv/bin/python
ANALYSIS=build/analysis
failed=0

step() {
    title=$1
    shift
    printf '%s ... ' "$title"
    if output=$("$@" 2>&1); then
        echo ok
    else
        echo FAILED
        printf '%s\n' "$output"
        failed=1
    fi
}

# The extensions' own flags with warnings as errors, and then the analyzer, which needs no optimization.
compile_strictly() {
    mkdir -p $ANALYSIS
    include=$($PYTHON -c 'import sysconfig; print(sysconfig.get_path("include"))')
    for source in btree/native/*.c cowfs/native/*.c benchmarks/ceiling/*.c tests/*/*.c tests/*/native/*.c; do
        object=$ANALYSIS/$(echo "$source" | tr / _).o
        [ "$object" -nt "$source" ] && [ -z "$(find btree cowfs benchmarks tests -name '*.h' -newer "$object")" ] && continue
        gcc -std=gnu11 -O2 -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Werror -pthread -fPIC "$@" \
            -I. -isystem "$include" -c "$source" -o "$object.new" && mv "$object.new" "$object" || return 1
    done
}

# Without the two kinds in which gcc 12 loses track of what is stored through a pointer to a pointer: all it finds of
# these is untrue.
analyze() {
    for source in btree/native/*.c cowfs/native/*.c benchmarks/ceiling/*.c; do
        case $source in
            # Python's own macros are not written for the analyzer.
            */binding*) continue ;;
        esac
        gcc -std=gnu11 -O1 -fanalyzer -Wno-analyzer-malloc-leak -Wno-analyzer-null-dereference \
            -Wno-analyzer-possible-null-dereference -Werror -I. -c "$source" -o /dev/null || return 1
    done
}

step "ruff check" $PYTHON -m ruff check .
step "ruff format (mounted tests, tools)" $PYTHON -m ruff format --check tests/mount tools setup.py
step "mypy --strict" $PYTHON -m mypy
step "gcc -Werror" compile_strictly
step "gcc -fanalyzer" analyze
step "tests of style and layering" $PYTHON -m pytest -q tests/unit/test_tidy.py tests/unit/test_layering.py
exit $failed
