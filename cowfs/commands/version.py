"""--version of every command."""

import argparse


def version() -> str:
    """Of the installed distribution. It is looked up when asked for: the module that does it takes longer to import
    than a --help to print."""
    from importlib import metadata

    try:
        return metadata.version("cowfs-fs")
    except metadata.PackageNotFoundError:
        return "(not installed)"


class _ShowVersion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_ignored: object) -> None:
        print(parser.prog, version())
        parser.exit()


def add_version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", action=_ShowVersion, nargs=0, default=argparse.SUPPRESS,
                        help="print the version, and nothing else")
