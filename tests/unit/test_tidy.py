"""Style that a test can hold: sizes, dead files, leftovers, unexplained exceptions from the rules."""

import ast
import importlib.util
import pathlib
import re
import subprocess
import tomllib
from types import ModuleType

import pytest

from tests.unit.test_layering import INCLUDE, imports, module_name, modules

ROOT = pathlib.Path(__file__).parents[2]
LINES_MAX = 800
LINE_LENGTH_MAX = 120
SUFFIXES = {".py", ".pyi", ".c", ".h", ".md", ".toml", ".sh", ".txt", ""}
GENERATED = {
    ".venv",
    ".git",
    "build",
    "dist",
    "__pycache__",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
    "results",
}


def texts() -> list[pathlib.Path]:
    """Every text file of the project: what git knows or would add, or, without git, what is not generated."""
    try:
        listing = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            check=True,
            capture_output=True,
            timeout=20,
        ).stdout.split(b"\0")
        paths = [ROOT / name.decode() for name in listing if name]
    except (FileNotFoundError, subprocess.CalledProcessError):
        paths = [path for path in ROOT.rglob("*") if not GENERATED & set(path.relative_to(ROOT).parts)]
    return sorted(path for path in paths if path.suffix in SUFFIXES and path.is_file() and "results" not in path.parts)


def named(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", texts(), ids=named)
def test_text(path: pathlib.Path) -> None:
    text = path.read_text()
    lines = text.splitlines()
    assert len(lines) <= LINES_MAX, f"{len(lines)} lines: split it by what the parts hold"
    assert text == "" or text.endswith("\n"), "ends without a newline"
    assert not re.search(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b", text), "says what is left to do"
    assert "pip install cow" + "fs" not in text.replace("pip install cow" + "fs-fs", ""), "that name is another's"
    for number, line in enumerate(lines, 1):
        assert line == line.rstrip(), f"line {number} ends in blanks"
        if path.suffix in (".c", ".h", ".py", ".pyi"):
            assert len(line) <= LINE_LENGTH_MAX, f"line {number} has {len(line)} columns"
            assert "\t" not in line, f"line {number} has a tab"
            assert not re.search(r"#\s*type:\s*ignore(?!\[)", line), f"line {number} ignores every type error"
            assert not re.search(r"#\s*noqa(?!:)", line), f"line {number} silences every rule"


def load_setup() -> ModuleType:
    specification = importlib.util.spec_from_file_location("cowfs_setup", ROOT / "setup.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_every_c_file_is_built() -> None:
    extensions = {extension.name: set(extension.sources) for extension in load_setup().EXTENSIONS}
    found = {named(path) for folder in ("btree", "cowfs") for path in (ROOT / folder).rglob("*.c")}
    core = {name for name in found if name.startswith("btree/native/") and "/binding" not in name}
    assert core, "there is a store"
    assert extensions["btree._store"] == {name for name in found if name.startswith("btree/")}
    assert extensions["cowfs._native"] == {name for name in found if name.startswith("cowfs/")} | core


def test_every_header_is_included_and_rebuilds() -> None:
    headers = [path for folder in ("btree", "cowfs") for path in (ROOT / folder).rglob("*.h")]
    depends = {name for extension in load_setup().EXTENSIONS for name in extension.depends}
    included = set()
    for path in (path for folder in ("btree", "cowfs") for path in (ROOT / folder).rglob("*.[ch]")):
        included |= {pathlib.Path(name).name for name in INCLUDE.findall(path.read_text())}
    for header in headers:
        assert header.name in included, f"nobody includes {header}"
        assert named(header) in depends, f"a change of {header} builds nothing"


def test_no_module_is_dead() -> None:
    """Each is imported by another, named by one as a string (commands are loaded by name), or an entry point."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    alive = {entry.partition(":")[0] for entry in project["scripts"].values()} | {"btree", "cowfs", "cowfs.commands"}
    for path in modules():
        own = module_name(path)
        alive |= {name for name in imports(path) if name != own}
        strings = {
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        alive |= strings | {f"cowfs.commands.{text}" for text in strings if own == "cowfs.commands.main"}
    tests_too = {name for path in (ROOT / "tests").rglob("*.py") for name in imports(path)}
    for path in modules():
        name = module_name(path)
        # The reference twin serves tests only.
        assert name in alive or (name == "btree.reference" and name in tests_too), f"{name} is used by nobody"


def test_skips_give_reasons() -> None:
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr in ("skipif", "xfail") or (node.func.attr == "skip" and "mark" in ast.dump(node.func)):
                reasons = [word.value for word in node.keywords if word.arg == "reason"]
            elif node.func.attr == "skip":
                reasons = list(node.args)
            else:
                continue
            explained = [reason for reason in reasons if not isinstance(reason, ast.Constant) or reason.value]
            assert explained, f"{path}:{node.lineno} skips without a reason"


def test_packages_are_listed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {module_name(path) for folder in ("btree", "cowfs") for path in (ROOT / folder).rglob("__init__.py")}
    assert found == listed
