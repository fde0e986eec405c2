"""Each command and verb has a manual page that names its options, and that man can read."""

import argparse
import importlib
import pathlib
import re
import shutil
import subprocess

import pytest

from cowfs.commands.main import VERBS

FOLDER = pathlib.Path(__file__).parents[2] / "docs" / "man"
PAGES = sorted(FOLDER.iterdir())
HEADINGS = [".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION", ".SH EXIT STATUS", ".SH SEE ALSO"]


def plain(path: pathlib.Path) -> str:
    return path.read_text().replace("\\-", "-").replace("\\&", "")


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_each_verb_has_a_page_with_its_options(verb: str) -> None:
    parser = argparse.ArgumentParser()
    importlib.import_module(f"cowfs.commands.{verb}").add_arguments(parser)
    text = plain(FOLDER / f"cowfs-{verb}.1")
    for action in parser._actions:
        for option in action.option_strings:
            if option not in ("-h", "--help"):
                assert re.search(rf"(?<![-\w]){re.escape(option)}(?![-\w])", text), f"{option} is not in the page"
        if not action.option_strings and action.metavar:
            for name in re.findall(r"[A-Z]{2,}", str(action.metavar)):
                assert name in text, f"{name} is not in the page"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_have_their_parts(page: pathlib.Path) -> None:
    text = plain(page)
    name, _, section = page.name.rpartition(".")
    assert text.startswith(f".TH {name.upper()} {section} ")
    positions = [text.find(heading) for heading in HEADINGS]
    assert -1 not in positions and positions == sorted(positions), dict(zip(HEADINGS, positions, strict=True))
    assert re.search(rf"^{re.escape(name)} \\?- \S", text, re.MULTILINE)
    for other, number in re.findall(r"^\.BR (\S+) \((\d)\)", text[positions[-1] :], re.MULTILINE):
        assert (FOLDER / f"{other}.{number}").exists(), f"{other}({number}) has no page"
    verb = name.removeprefix("cowfs-")
    assert name in ("cowfs", "mkfs.cowfs", "mount.cowfs", "fsck.cowfs") or verb in VERBS, "a page of no command"


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_groff_finds_nothing_to_complain_about() -> None:
    result = subprocess.run(["groff", "-man", "-Tascii", "-ww", "-z", *PAGES], capture_output=True, text=True,
                            check=False, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
