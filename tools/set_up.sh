#!/bin/sh
# Makes this checkout ready to build: installs the Debian packages that are missing, makes .venv with a Python from
# 3.11 to 3.13 and installs the Python packages of pyproject.toml into it. Quick when everything is there already.
#
# With the argument `bench` also what the benchmarks compare with and measure by; nothing of that is started. With the
# argument `fuzz` also clang, for libFuzzer.
#
# PYTHON=/path/to/python3 chooses the interpreter. Where apt-get is not present the missing things are named, and the
# attempt goes on.
set -eu
cd "$(dirname "$0")/.."

VENV=.venv
STAMP=$VENV/.set_up
EXTRAS=developer

# Build needs, run-time needs, and what the tests drive the mounted file system with.
PACKAGES="fuse3 libfuse3-dev libxxhash-dev libzstd-dev liblz4-dev liburing-dev pkg-config gcc libc6-dev make
fio btrfs-progs rsync sqlite3 git attr acl e2fsprogs strace util-linux procps"
BENCH_PACKAGES="zfs-fuse dbench xfsprogs"
FUZZ_PACKAGES="clang llvm"
POLICY=/usr/sbin/policy-rc.d

say() {
    printf 'set-up: %s\n' "$*" >&2
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1; then
        sudo "$@"
    else
        say "not root and no sudo: cannot run: $*"
        return 1
    fi
}

missing_packages() {
    for package in "$@"; do
        state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
        [ "$state" = installed ] || printf '%s ' "$package"
    done
}

install_packages() {
    if ! command -v apt-get >/dev/null 2>&1; then
        say "no apt-get here: these must be present under whatever name they have: $(echo "$@" | tr '\n' ' ')"
        return 0
    fi
    missing=$(missing_packages "$@")
    [ -n "$missing" ] || return 0
    say "installing $missing"
    attempt=1
    until as_root apt-get -q update >/dev/null; do
        [ "$attempt" -lt 3 ] || { say "apt-get update failed"; return 1; }
        attempt=$((attempt + 1))
        sleep 5
    done
    # shellcheck disable=SC2086 # a list of words
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install $missing >/dev/null
}

# zfs-fuse comes with a daemon that would start now and with the machine: the benchmarks start their own instead. What
# policy-rc.d says is what package scripts ask before they start anything; 101 forbids it.
install_bench_packages() {
    fresh=$(missing_packages zfs-fuse)
    if [ -z "$fresh" ] || ! command -v apt-get >/dev/null 2>&1; then
        install_packages "$@"
        return
    fi
    kept=$(mktemp)
    if [ -e $POLICY ]; then
        as_root cp -p $POLICY "$kept"
        restore="as_root cp -p '$kept' $POLICY; rm -f '$kept'"
    else
        restore="as_root rm -f $POLICY; rm -f '$kept'"
    fi
    trap "$restore" EXIT
    trap 'exit 130' INT TERM HUP
    printf '#!/bin/sh\nexit 101\n' | as_root tee $POLICY >/dev/null
    as_root chmod 755 $POLICY
    install_packages "$@"
    as_root update-rc.d zfs-fuse disable
    eval "$restore"
    trap - EXIT INT TERM HUP
}

# An interpreter that pyproject.toml admits, that can make virtual environments and has its headers.
suitable() {
    "$1" - <<'PYTHON' >/dev/null 2>&1
import ensurepip, os, sys, sysconfig, venv
headers = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(not ((3, 11) <= sys.version_info < (3, 14) and os.path.exists(headers)))
PYTHON
}

choose_python() {
    for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11 /usr/bin/python3; do
        if suitable "$candidate"; then
            echo "$candidate"
            return 0
        fi
    done
    return 1
}

# shellcheck disable=SC2086
install_packages $PACKAGES
if [ "${1:-}" = bench ]; then
    # shellcheck disable=SC2086
    install_bench_packages $BENCH_PACKAGES
    EXTRAS="developer benchmarks"
    STAMP=$VENV/.set_up_bench
fi
if [ "${1:-}" = fuzz ]; then
    # shellcheck disable=SC2086
    install_packages $FUZZ_PACKAGES
fi

if [ ! -x $VENV/bin/python ] || ! suitable $VENV/bin/python; then
    if ! python=$(choose_python); then
        install_packages python3-venv python3-dev
        python=$(choose_python) || { say "no Python from 3.11 to 3.13 with headers and venv found; set PYTHON"; exit 1; }
    fi
    say "making $VENV with $("$python" -c 'import sys; print(sys.executable, sys.version.split()[0])')"
    rm -rf $VENV
    "$python" -m venv $VENV
fi

wanted=$(cksum <pyproject.toml)
if [ "$(cat $STAMP 2>/dev/null || true)" != "$wanted" ]; then
    say "installing Python packages into $VENV"
    # The project itself is linked in by a path file and its extensions are built by make: what is installed here
    # are the requirements, which pip reads from pyproject.toml, and the commands.
    $VENV/bin/python tools/requirements.py $EXTRAS >$VENV/requirements.txt
    attempt=1
    until $VENV/bin/python -m pip install --quiet --disable-pip-version-check -r $VENV/requirements.txt; do
        [ "$attempt" -lt 3 ] || { say "pip failed"; exit 1; }
        attempt=$((attempt + 1))
        sleep 5
    done
    COWFS_WITHOUT_EXTENSIONS=1 $VENV/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
        --no-build-isolation --config-settings editable_mode=compat --editable .
    printf '%s\n' "$wanted" >$STAMP
fi

if [ ! -e /dev/fuse ]; then
    as_root modprobe fuse 2>/dev/null || say "no /dev/fuse: mounting will not work here"
fi
