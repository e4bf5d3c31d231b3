"""Writes the map of modules in ARCHITECTURE.md from the modules' own first sentences: ``python docs/module_map.py``.

*Shell (files).* Run by hand (``make map``); a test checks that the map is up to date.

1. A module's entry is the first paragraph of its docstring.
2. Packages come from the bottom up; in a package, modules come in the order in which its ``__init__`` names them.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- map: written by docs/module_map.py -->\n", "<!-- end of map -->\n"
PACKAGES = ("meshray", "meshray/messages", "meshray/transport", "meshray/gcs", "meshray/sched", "meshray/store",
            "meshray/session", "meshray/processes", "meshray/util", "cli", "examples", "perf")


def first_paragraph(path: Path) -> str:
    """Return the first paragraph of a module's docstring on one line."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(docstring.split("\n\n")[0].split()).replace("``", "`")


def modules(package: Path) -> list[Path]:
    """Return the package's modules in reading order."""
    init = package / "__init__.py"
    text = (ast.get_docstring(ast.parse(init.read_text())) or "") if init.exists() else ""

    def place(path: Path) -> tuple[int, str]:
        found = text.find(f"``{path.stem}``")
        return (found if found >= 0 else len(text), path.stem)

    return sorted((path for path in package.glob("*.py") if path != init), key=place)


def section(name: str) -> str:
    """Return the part of the map about one package."""
    package = ROOT / name
    init = package / "__init__.py"
    title = first_paragraph(init) if init.exists() else ""
    lines = [f"### `{name}/`\n", f"\n{title}\n" if title else "", "\n"]
    lines += [f"- `{path.stem}`: {first_paragraph(path)}\n" for path in modules(package)]
    return "".join(lines) + "\n"


def with_map(text: str) -> str:
    """Return the text of ARCHITECTURE.md with its map replaced by the present one."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return before + BEGIN + "\n" + "".join(section(name) for name in PACKAGES if (ROOT / name).is_dir()) + END + after


if __name__ == "__main__":
    file = ROOT / "docs" / "ARCHITECTURE.md"
    file.write_text(with_map(file.read_text()))
