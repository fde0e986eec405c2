"""Arrows point one way: commands -> daemon -> operations -> the verbs -> btree. Which module may import which, which
may know trio and pyfuse3, and which C file may include which header."""

import ast
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# From the bottom up. A module imports from layers below its own or from beside it; beside may not go round in a ring.
LAYERS = (
    {"btree", "btree._store", "btree.records", "btree.reference"},
    {"cowfs", "cowfs._native", "cowfs.errors"},
    {"cowfs.snapshots", "cowfs.mount_options", "cowfs.latencies", "cowfs.properties", "cowfs.retention",
     "cowfs.compression"},
    {"cowfs.travel", "cowfs.differences"},
    {"cowfs.mappings", "cowfs.mounting", "cowfs.damage"},
    {"cowfs.client", "cowfs.pools", "cowfs.volumes", "cowfs.restore", "cowfs.repair"},
    {"cowfs.versions", "cowfs.heads"},
    {"cowfs.history", "cowfs.schedule", "cowfs.deletion", "cowfs.travel_verbs"},
    {"cowfs.operations", "cowfs.serving", "cowfs.control", "cowfs.scrub"},
    {"cowfs.daemon"},
    {"cowfs.commands"},
)
# Those that wait: a task switch can happen in them, and nowhere else.
MAY_IMPORT_TRIO = {"cowfs.operations", "cowfs.serving", "cowfs.control", "cowfs.scrub", "cowfs.daemon"}
MAY_IMPORT_PYFUSE3 = {"cowfs.operations", "cowfs.daemon"}


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> list[pathlib.Path]:
    return sorted(path for folder in ("btree", "cowfs") for path in (ROOT / folder).rglob("*.py"))


def imports(path: pathlib.Path, *, at_import_time: bool = False) -> Iterator[str]:
    """Full names of the modules that a file imports; with `at_import_time` without those that functions import, and
    in either case without those that only type checkers see."""
    tree = ast.parse(path.read_text())
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if at_import_time and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base] if base else parent)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if is_module(full) else base
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    yield from visit(tree)


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").exists() or path.with_suffix(".pyi").exists() or (path / "__init__.py").exists()


def layer_of(name: str) -> int:
    for rank, layer in enumerate(LAYERS):
        if name in layer or any(name.startswith(f"{member}.") and member == "cowfs.commands" for member in layer):
            return rank
    raise AssertionError(f"{name} is in no layer: name it in LAYERS")


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_imports_point_down(path: pathlib.Path) -> None:
    own = module_name(path)
    for name in imports(path):
        top = name.partition(".")[0]
        if top in ("btree", "cowfs"):
            # The package cowfs hands out the client to programs; nobody pays for it who does not ask.
            if own != "cowfs":
                assert layer_of(name) <= layer_of(own), f"{own} imports {name}, which stands above it"
        elif top == "trio":
            assert own in MAY_IMPORT_TRIO, f"{own} imports trio"
        elif top == "pyfuse3":
            assert own in MAY_IMPORT_PYFUSE3, f"{own} imports pyfuse3"


def test_the_store_knows_no_files() -> None:
    for path in sorted((ROOT / "btree").rglob("*.py*")):
        if path.suffix in (".py", ".pyi"):
            for name in imports(path):
                assert name.partition(".")[0] not in ("cowfs", "trio", "pyfuse3"), f"{path} imports {name}"


def test_no_rings() -> None:
    graph = {module_name(path): set(imports(path, at_import_time=True)) for path in modules()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"a ring of imports: {' -> '.join((*trail, name))}"
        if name in done:
            return
        for below in sorted(graph.get(name, ())):
            # Importing a submodule runs its package first, which is no ring as long as the package does not look down.
            if below in graph and below != name:
                visit(below, (*trail, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_the_package_is_light() -> None:
    """Importing cowfs or the commands' entry brings in neither trio nor pyfuse3 nor the extensions."""
    script = (
        "import sys, cowfs, cowfs.commands.main\n"
        "heavy = {'trio', 'pyfuse3', 'btree._store', 'cowfs._native', 'asyncio', 'subprocess'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=20)


# ---- C --------------------------------------------------------------------------------------------------------------

INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)


def c_files() -> list[pathlib.Path]:
    return sorted(path for folder in ("btree", "cowfs") for path in (ROOT / folder / "native").glob("*.[ch]"))


@pytest.mark.parametrize("path", c_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_includes_point_down(path: pathlib.Path) -> None:
    for name in INCLUDE.findall(path.read_text()):
        if "Python.h" in name or name == "structmember.h":
            assert path.name.startswith("binding"), f"{path} includes {name}: only bindings know Python"
        if path.parent.parent.name == "btree":
            assert "cowfs" not in name, f"{path} includes {name}: the store knows no files"
            assert not (ROOT / "cowfs" / "native" / name).exists() or (path.parent / name).exists(), f"{path}: {name}"
        if not path.name.startswith("binding"):
            assert not pathlib.Path(name).name.startswith("binding"), f"{path} includes {name} of the binding"
