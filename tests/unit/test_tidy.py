"""The rules of the house that a program can check: layers, doors, sizes, headers, purity, names, dead code.

Each test names every offender at once. A new top-level module must be placed in ``LAYERS``.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE_LINES_MAX, FUNCTION_LINES_MAX = 400, 60

LAYERS = (
    ("vocabulary", "ids config version machine messages node_config errors failures object_ref packing private_modules "
                   "serialization unpicklable exception_chain resources labels options cluster_schema "
                   "cluster_meaning cluster_config call_shape"),
    ("transport", "transport"),
    ("subsystems", "gcs sched store"),
    ("processes", "session processes"),
    ("public API", "__init__ api actor remote_function runtime_context exceptions util"),
    ("tools", "cli"),
)
"""Lowest first; a module imports only from its own layer and those before it."""

LATE_UPWARD = {
    ("meshray.object_ref", "meshray.session"): "a reference awaits itself through the session of its process",
}
"""Imports inside functions that point up, each with its reason."""

SUBSYSTEMS = ("meshray.gcs", "meshray.sched", "meshray.store")

DOORS = {
    "zmq": ["meshray/transport/"],
    "lmdb": ["meshray/gcs/storage.py"],
    "mmap": ["meshray/store/arena_file.py"],
    "ctypes": ["meshray/store/arena_file.py", "meshray/processes/"],
    "pickle": ["meshray/serialization.py"],
    "cloudpickle": ["meshray/serialization.py"],
    "subprocess": ["meshray/processes/"],
    "multiprocessing": [],
    "os.fork": ["meshray/processes/"],
    "os.posix_spawn": ["meshray/processes/"],
}
"""For each library or call: the only files (or folders) of the package that may use it."""

IMPURE = {
    "asyncio", "ctypes", "lmdb", "mmap", "multiprocessing", "os", "pickle", "random", "secrets", "select", "selectors",
    "signal", "socket", "subprocess", "tempfile", "threading", "time", "uuid", "zmq",
}
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "base", "misc"}
NAMES_ALLOWED = {"meshray/messages/base.py": "the root of the messages", "meshray/util/__init__.py": "Ray's name"}
ENTRY_POINTS = ("meshray.cli.main", "meshray.exceptions", "meshray.util", "meshray.version")
"""Modules that users or the installer import, with all below them."""
UNIT_CONSTANTS = {"MILLISECOND_NS", "SECOND_NS", "KIB", "MIB", "GIB"}


def files(*folders: str) -> list[Path]:
    """Return the Python files below these folders, relative to the root."""
    return sorted(path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py"))


PACKAGE = files("meshray", "cli")
EVERYTHING = files("meshray", "cli", "perf", "examples", "docs", "tests")


@cache
def tree(path: Path) -> ast.Module:
    """Return the syntax tree of a file, parsed once."""
    return ast.parse((ROOT / path).read_text(), filename=str(path))


def module_name(path: Path) -> str:
    """Return the dotted name that a file of the package is imported by."""
    parts = path.with_suffix("").parts
    parts = ("meshray", *parts) if parts[0] == "cli" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE}


def imports(path: Path, *, late: bool) -> Iterator[str]:
    """Yield the modules that a file imports when it is loaded (or, ``late``, inside functions)."""
    for node, inside in walk(tree(path), False):
        if inside != late:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module_name(path.with_name("__init__.py")) + "." if node.level else ""
            source = (package + (node.module or "")).rstrip(".")
            for alias in node.names:
                full = f"{source}.{alias.name}"
                yield full if full in MODULES else source


def walk(node: ast.AST, inside: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Yield every node with whether it lies in a function; what only type checkers see is left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        within = inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield child, inside
        yield from walk(child, within)


def layer_of(module: str) -> int:
    """Return the number of a module's layer; fail for a module that has none."""
    top = [*module.split("."), "__init__"][1]
    for number, (_, names) in enumerate(LAYERS):
        if top in names.split():
            return number
    pytest.fail(f"{module} has no layer: add {top!r} to LAYERS in {Path(__file__).name}")


def report(offenders: list[str]) -> None:
    """Fail with all offenders, if there are any."""
    assert not offenders, "\n" + "\n".join(offenders)


def test_imports_point_down() -> None:
    offenders, used = [], set()
    for module, path in MODULES.items():
        layer = layer_of(module)
        late = {(late_module, True) for late_module in imports(path, late=True)}
        for imported, is_late in sorted(late | {(early, False) for early in imports(path, late=False)}):
            if not imported.startswith("meshray") or layer_of(imported) <= layer:
                continue
            allowed = {pair for pair in LATE_UPWARD if is_late and pair[0] == module and imported.startswith(pair[1])}
            used |= allowed
            if not allowed:
                offenders.append(f"{path} imports {imported}, which lies above it")
    report(offenders + [f"{source} no longer imports {target}" for source, target in set(LATE_UPWARD) - used])


def test_subsystems_do_not_meet() -> None:
    report([
        f"{path} imports {imported}"
        for module, path in MODULES.items() if module.startswith(SUBSYSTEMS)
        for late in (False, True) for imported in imports(path, late=late)
        if imported.startswith(SUBSYSTEMS) and imported.split(".")[1] != module.split(".")[1]
    ])


def test_each_library_has_one_door() -> None:
    offenders = []
    for path in PACKAGE:
        used = {name.split(".")[0] for late in (False, True) for name in imports(path, late=late)}
        used |= {ast.unparse(node) for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)}
        for library, doors in DOORS.items():
            if library in used and not any(str(path).startswith(door) for door in doors):
                offenders.append(f"{path} uses {library}, whose door is {' or '.join(doors) or 'nowhere'}")
    report(offenders)


def test_modules_are_small() -> None:
    sizes = {path: len((ROOT / path).read_text().splitlines()) for path in EVERYTHING}
    report([f"{path} has {size} lines, at most {MODULE_LINES_MAX}" for path, size in sizes.items()
            if size > MODULE_LINES_MAX])


def test_functions_fit_a_screen() -> None:
    report([
        f"{path}:{node.lineno} {node.name} has {size} lines, at most {FUNCTION_LINES_MAX}"
        for path in EVERYTHING for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (size := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    ])


def test_headers_say_what_a_module_is() -> None:
    offenders = []
    for path in [*PACKAGE, *files("perf")]:
        lines = (ast.get_docstring(tree(path)) or "").splitlines()
        paragraph = " ".join(lines[: lines.index("")] if "" in lines else lines)
        if path.name == "version.py":
            continue
        if not paragraph.endswith((".", "?")):
            offenders.append(f"{path}: the docstring must begin with a sentence")
        plain = path.name == "__init__.py" or path.name.startswith("test_")
        if not plain and not any(re.match(r"\*(Pure\b|Shell \()", line) for line in lines):
            offenders.append(f"{path}: the docstring must say *Pure.* or *Shell (what).*, and which process runs it")
    report(offenders)


def test_pure_modules_touch_nothing() -> None:
    report([
        f"{path} says *Pure.* and imports {imported}"
        for path in PACKAGE if "\n*Pure.*" in (ast.get_docstring(tree(path)) or "")
        for late in (False, True) for imported in imports(path, late=late) if imported.split(".")[0] in IMPURE
    ])


def test_module_names_say_something() -> None:
    report([f"{path}: the name says nothing" for path in EVERYTHING
            if (path.stem in FORBIDDEN_NAMES or path.parent.name in FORBIDDEN_NAMES)
            and str(path) not in NAMES_ALLOWED and path.parent.name != "util"])


def test_every_limit_is_documented() -> None:
    offenders = []
    for path in [path for path in PACKAGE if path.name in ("config.py", "limits.py")]:
        body = tree(path).body
        for node, following in zip(body, [*body[1:], None], strict=True):
            targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
            names = {target.id for target in targets if isinstance(target, ast.Name)}
            documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            if names - UNIT_CONSTANTS and not documented:
                offenders.append(f"{path}:{node.lineno} {', '.join(names)} needs a docstring: unit, default, reason")
    report(offenders)


def test_messages_are_listed_and_documented() -> None:
    offenders = []
    for path in files("meshray/messages"):
        listed = {node.id for each in tree(path).body if isinstance(each, ast.Assign)
                  and ast.unparse(each.targets[0]) == "MESSAGES" for node in ast.walk(each.value)
                  if isinstance(node, ast.Name)}
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and any(keyword.arg == "tag" for keyword in node.keywords):
                if node.name not in listed:
                    offenders.append(f"{path}: {node.name} is missing from MESSAGES")
                if not ast.get_docstring(node):
                    offenders.append(f"{path}: {node.name} needs a docstring: from, to, meaning, answer, retry")
    report(offenders)


def test_nothing_is_swallowed() -> None:
    report([
        f"{path}:{node.lineno} swallows every exception"
        for path in EVERYTHING for node in ast.walk(tree(path)) if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
        and all(isinstance(each, ast.Pass | ast.Continue) for each in node.body)
    ])


def comments(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the comments of a file with their line numbers."""
    for token in tokenize.generate_tokens(io.StringIO((ROOT / path).read_text()).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("#:! ").strip()


def is_code(text: str) -> bool:
    """Whether a comment is a statement that was switched off."""
    try:
        statements = ast.parse(text).body
    except SyntaxError:
        return False
    return any(not isinstance(each, ast.Expr) or isinstance(each.value, ast.Call) for each in statements
               if not isinstance(each, ast.AnnAssign) or each.value is not None)


def test_comments_are_sentences() -> None:
    offenders = []
    for path in EVERYTHING:
        for line, text in comments(path):
            if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", text):
                offenders.append(f"{path}:{line} leaves work for later: {text}")
            elif is_code(text):
                offenders.append(f"{path}:{line} is code that was switched off: {text}")
    report(offenders)


def test_no_module_is_dead() -> None:
    used = {"meshray", *(module for module in MODULES if module.startswith(ENTRY_POINTS))}
    for path in PACKAGE:
        for late in (False, True):
            for imported in imports(path, late=late):
                parts = imported.split(".")
                used |= {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
        used |= {node.value for node in ast.walk(tree(path))
                 if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in MODULES}
        used |= {imported for node in ast.walk(tree(path)) if isinstance(node, ast.If)
                 and "TYPE_CHECKING" in ast.unparse(node.test) for each in node.body
                 for imported in ([each.module] if isinstance(each, ast.ImportFrom) and each.module else [])}
    report([f"{path}: nobody imports {module}" for module, path in MODULES.items() if module not in used])


def test_the_map_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("module_map", ROOT / "docs" / "module_map.py")
    assert spec is not None and spec.loader is not None
    module_map = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module_map)
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    assert module_map.with_map(text) == text, "docs/ARCHITECTURE.md is behind the tree: run `make map`"
