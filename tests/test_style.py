"""Plain English in the library: phrases that readers stumbled over do not come back."""

from __future__ import annotations

import ast
import re
from pathlib import Path

SOURCES = sorted((Path(__file__).parents[1] / "platform").rglob("*.py"))
STUMBLING = re.compile(
    r"\b(told|tells|said aloud|goes on|gone on with|go on with|of before|what became of|there is none|there are none|"
    r"(?:is|are) no (?:more|longer a|table|file|number|class|corpus|model|bundle)|where it is none|by the way of)\b"
)


def test_no_stumbling_phrases():
    lines = [(path, number, line) for path in SOURCES for number, line in enumerate(path.read_text().splitlines(), 1)]
    found = [f"{path}:{number}: {line.strip()}" for path, number, line in lines if STUMBLING.search(line)]
    assert not found, "\n".join(found)


def test_no_docstring_begins_with_what():
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    nodes = [(path, node) for path in SOURCES for node in ast.walk(ast.parse(path.read_text()))]
    found = [
        f"{p}:{n.lineno} {n.name}"
        for p, n in nodes
        if isinstance(n, kinds) and (ast.get_docstring(n) or "").startswith("What ")
    ]
    assert not found, "\n".join(found)
