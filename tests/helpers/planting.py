"""Plant mistakes in copies of files: each is a replacement that must be found exactly once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Mistake:
    """``before`` in ``file`` becomes ``after``; whoever checks must then print ``caught`` (default: anything)."""

    file: str
    before: str
    after: str
    caught: str = ""

    def plant(self, folder: Path) -> None:
        """Change the file below ``folder``."""
        path = folder / self.file
        text = path.read_text(encoding="utf-8")
        assert text.count(self.before) == 1, f"{self.file} has {self.before!r} {text.count(self.before)} times"
        path.write_text(text.replace(self.before, self.after), encoding="utf-8")

    def __str__(self) -> str:
        return f"{self.file}: {self.before!r} -> {self.after!r}"


def missed(mistakes: Sequence[Mistake], output: str) -> list[str]:
    """The mistakes that ``output`` does not name. Line breaks and frames of messages are not looked at."""
    seen = " ".join(output.replace("│", " ").split())
    return [str(mistake) for mistake in mistakes if " ".join(mistake.caught.split()) not in seen]


def load_mistakes(path: Path) -> dict[str, list[Mistake]]:
    """Read the mistakes of a YAML file, by kind."""
    kinds = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {kind: [Mistake(**entry) for entry in entries] for kind, entries in kinds.items()}
