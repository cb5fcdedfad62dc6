"""The fenced blocks and the inline commands of README.md and docs/, and the words of their commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
OPERATORS = {"|", "||", "&&", "&", ";"}
SUBSTITUTION = re.compile(r"\$\(([^()]*)\)")
ASSIGNMENT = re.compile(r"^[A-Za-z_]\w*=")


@dataclass(frozen=True)
class Block:
    """One fenced block of a file."""

    file: str  # below docs/, or README.md
    number: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}-{self.number}"

    def commands(self) -> Iterator[list[str]]:
        """The words of each command; lines of a here-document are no commands."""
        end = None
        for line in self.text.replace("\\\n", " ").splitlines():
            if end is not None:
                end = None if line.strip() == end else end
                continue
            yield from split(line)
            if found := re.search(r"<<-?\s*['\"]?(\w+)", line):
                end = found[1]


def split(line: str) -> Iterator[list[str]]:
    """The commands of one line of a shell, those in $(…) first, without redirections and assignments before them."""
    for inner in SUBSTITUTION.findall(line):
        yield from split(inner)
    line = SUBSTITUTION.sub("SUBSTITUTED", line)
    reader = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    reader.whitespace_split, reader.commenters = True, ""
    words: list[str] = []
    for word in [*_uncommented(reader), ";"]:
        if word not in OPERATORS:
            words.append(word)
            continue
        while words and ASSIGNMENT.match(words[0]):
            words.pop(0)
        if words:
            yield _without_redirections(words)
        words = []


def _uncommented(words: Iterator[str]) -> Iterator[str]:
    for word in words:
        if word.startswith("#"):
            return
        yield word


def _without_redirections(words: list[str]) -> list[str]:
    place = next((place for place, word in enumerate(words) if re.match(r"^\d?[<>]", word)), len(words))
    return words[:place]


def name_of(path: Path) -> str:
    """The name of a file: below docs/, or README.md."""
    return path.relative_to(ROOT / "docs").as_posix() if (ROOT / "docs") in path.parents else path.name


def blocks(language: str | None = None) -> list[Block]:
    """All blocks, or those of one language."""
    found = [
        Block(name_of(path), number, language_found, text)
        for path in FILES
        for number, (_, language_found, text) in enumerate(BLOCK.findall(path.read_text(encoding="utf-8")))
    ]
    return [block for block in found if language in (None, block.language)]


def prose(path: Path) -> str:
    """A file without its blocks."""
    return BLOCK.sub("", path.read_text(encoding="utf-8"))


def inline(path: Path) -> list[str]:
    """Everything that stands in single backticks outside of blocks."""
    return INLINE.findall(prose(path))
