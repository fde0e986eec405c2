"""Shows whether the kernel offers FUSE over io_uring, which is quicker than /dev/fuse, or switches it on or off.

Linux has it since 6.14, switched off. 'enable' and 'disable' (as root) hold at once, for mounts made from then on, and
after a reboot: 'enable' writes /etc/modprobe.d/cowfs-fuse.conf, for a driver that is a module, and
/etc/tmpfiles.d/cowfs-fuse.conf, for one built into the kernel; 'disable' removes both. A mount uses it unless it is
mounted with -o uring=off.

exit codes of this command: 1 the kernel does not have it, 8 not root, or /sys is read-only
"""

import argparse
import os
import sys
from typing import NamedTuple

from cowfs.commands.output import add_json, print_result
from cowfs.errors import CowfsError, ExitCode

# Where the machine's files are looked for.
ROOT = "/"
MODULE = "sys/module/fuse"
PARAMETER = f"{MODULE}/parameters/enable_uring"
IO_URING_DISABLED = "proc/sys/kernel/io_uring_disabled"
BOOT_WORD = "fuse.enable_uring=1"
HEADER = "# Written by 'cowfs uring enable'; 'cowfs uring disable' removes it.\n"
# modprobe reads the first when it loads the driver, and nobody does for a driver inside the kernel; systemd-tmpfiles
# writes the second one's value at boot if there is a driver by then. Both, so that another kernel is served as well.
MODPROBE = "etc/modprobe.d/cowfs-fuse.conf"
TMPFILES = "etc/tmpfiles.d/cowfs-fuse.conf"
PERMANENT = {
    MODPROBE: f"{HEADER}options fuse enable_uring=Y\n",
    TMPFILES: f"{HEADER}w /{PARAMETER} - - - - Y\n",
}


class UringState(NamedTuple):
    supported: bool
    enabled: bool
    permanent: bool
    built_in: bool
    notes: list[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("status", "enable", "disable"), nargs="?", default="status",
                        help="what to do (status)")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.action == "enable":
        enable()
    elif arguments.action == "disable":
        disable()
    state = read_state()
    for note in state.notes:
        print(f"cowfs: note: {note}", file=sys.stderr)
    words = {False: "no", True: "yes"}
    text = "\n".join([f"supported by the kernel  {words[state.supported]}", f"on now                   "
                      f"{words[state.enabled]}", f"on after a reboot        {words[state.permanent]}"])
    print_result(arguments, state._asdict(), text if arguments.action == "status" else "")
    return ExitCode.OK


def read_state() -> UringState:
    value = _read(PARAMETER)
    # A module that was loaded says how far it has come; a driver inside the kernel has nothing to say.
    built_in = os.path.isdir(_path(MODULE)) and not os.path.exists(_path(f"{MODULE}/initstate"))
    has_systemd = os.path.isdir(_path("run/systemd/system"))
    at_boot = _boot_parameter()
    if built_in:
        permanent = bool(at_boot) or (has_systemd and os.path.exists(_path(TMPFILES)))
    else:
        permanent = os.path.exists(_path(MODPROBE)) if at_boot is None else at_boot
    enabled = value in ("Y", "1")
    supported = value is not None
    notes = []
    if not os.path.isdir(_path(MODULE)):
        notes.append("the kernel's fuse driver is not loaded, so this does not tell what it can do; load it: "
                     "modprobe fuse")
    if built_in and os.path.exists(_path(TMPFILES)) and not at_boot:
        notes.append("the fuse driver is built into this kernel: "
                     + ("systemd-tmpfiles switches it on at boot, after the file systems of /etc/fstab are mounted"
                        if has_systemd else "without systemd nothing switches it on at boot")
                     + f"; '{BOOT_WORD}' on the kernel's command line does so from the start")
    if at_boot and not enabled:
        notes.append("the kernel's command line switches it on again at the next boot; remove "
                     f"'{BOOT_WORD}' from it to keep it off")
    if enabled and _read(IO_URING_DISABLED) in ("1", "2"):
        notes.append("the sysctl kernel.io_uring_disabled keeps processes from using io_uring at all (1: ordinary "
                     "users, 2: root too)")
    return UringState(supported, enabled, supported and permanent, built_in, notes)


def enable() -> None:
    """The setting first: it needs all the rights that the files need, so that mostly all is done or nothing."""
    _write_parameter("Y")
    for name, text in PERMANENT.items():
        try:
            os.makedirs(os.path.dirname(_path(name)), mode=0o755, exist_ok=True)
            with open(_path(name), "w", encoding="ascii") as file:
                file.write(text)
        except OSError as error:
            raise CowfsError.from_os_error(
                error, f"write {_path(name)}", f"it is on until the next boot; '{BOOT_WORD}' on the kernel's command "
                "line switches it on at every boot") from None


def disable() -> None:
    _write_parameter("N")
    for name in PERMANENT:
        try:
            os.unlink(_path(name))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CowfsError.from_os_error(error, f"remove {_path(name)}",
                                           "remove it yourself: until then it is on again after a reboot") from None


def _path(name: str) -> str:
    return os.path.join(ROOT, name)


def _read(name: str) -> str | None:
    """None for a file that does not exist, or not for this user."""
    try:
        with open(_path(name), encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except (FileNotFoundError, PermissionError):
        return None


def _boot_parameter() -> bool | None:
    """What the kernel's command line says, which counts for a module too; None when it says nothing."""
    told = None
    for word in (_read("proc/cmdline") or "").split():
        name, _, value = word.partition("=")
        if name.replace("-", "_") == "fuse.enable_uring":
            told = value[:1] in ("", "1", "y", "Y", "t", "T") or value[:2].lower() == "on"
    return told


def _write_parameter(value: str) -> None:
    doing = f"switch FUSE over io_uring {'on' if value == 'Y' else 'off'}"
    path = _path(PARAMETER)
    if not os.path.isdir(_path(MODULE)):
        raise CowfsError("error", f"cannot {doing}: the kernel's fuse driver is not loaded",
                         "load it with 'modprobe fuse', then try again")
    if not os.path.exists(path):
        raise CowfsError("error", f"cannot {doing}: this kernel does not have it",
                         "it takes Linux 6.14 or later, built with CONFIG_FUSE_IO_URING; cowfs works without it")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)
    except PermissionError as error:
        raise CowfsError.from_os_error(error, doing, f"run it as root: sudo cowfs uring "
                                       f"{'enable' if value == 'Y' else 'disable'}") from None
    except OSError as error:
        raise CowfsError.from_os_error(error, doing, "/sys must be writable: in a container, run it on the host"
                                       ) from None
