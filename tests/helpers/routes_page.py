"""Run docs/serving-routes.md, which calls every route by curl, and record each call."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

PAGE = Path(__file__).parents[2] / "docs" / "serving-routes.md"
_BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# In place of curl: the same, with a record of each call. It may run in a subshell, so files are numbered by mktemp.
_RECORDED = r"""
set -euo pipefail
curl() {
  local record; record=$(mktemp -p "$RECORDS" call.XXXXXXXX)
  command curl --silent --show-error --max-time 120 -D "$record.head" \
    -w "%{stderr}%{method} %{url_effective} %{http_code} %{num_redirects}\n" "$@" 2> "$record"
}
"""
# Without a service: what each call would ask.
_NAMED = r"""
set -euo pipefail
curl() {
  local method=GET url= word previous=
  for word in "$@"; do
    case "$previous" in
      -X) method=$word ;;
      -d | --data-binary) [ "$method" = GET ] && method=POST ;;
    esac
    case "$word" in "$URL"*) url=$word ;; esac
    previous=$word
  done
  echo "$method $url" >> "$RECORDS/named"
  printf '{"id": "x0"}\nevent: succeeded\n' | if [[ " $* " == *" -N "* ]]; then cat; else head -1; fi
}
"""


@dataclass(frozen=True)
class Call:
    """A call of curl."""

    method: str
    path: str
    status: int
    headers: Mapping[str, str]


def script() -> str:
    """Return the commands of the page."""
    return "\n".join(_BLOCK.findall(PAGE.read_text(encoding="utf-8")))


def named_calls(folder: Path) -> set[tuple[str, str]]:
    """Return the methods and paths that the page asks, without asking."""
    _run(_NAMED + script(), folder, {"URL": "http://service", "RECORDS": str(folder)})
    lines = [line.split() for line in (folder / "named").read_text().splitlines()]
    return {(method, urlsplit(url).path) for method, url in lines}


def run_page(folder: Path, variables: Mapping[str, str], *, replace: Mapping[str, str]) -> list[Call]:
    """Run the page in a folder, and return its calls; AssertionError if a command fails.

    ``replace``: texts of the page that stand for the user's own, such as cells.
    """
    records = folder / "records"
    records.mkdir()
    commands = script()
    for text, other in replace.items():
        assert text in commands, text
        commands = commands.replace(text, other)
    _run(_RECORDED + commands, folder, {**variables, "RECORDS": str(records)})
    calls = []
    for record in sorted(records.glob("call.*"), key=lambda path: path.stat().st_mtime):
        if record.suffix == ".head":
            continue
        method, url, status, _ = record.read_text().splitlines()[-1].split()
        head = record.with_name(f"{record.name}.head").read_text().strip().split("\n\n")[-1].splitlines()
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        calls.append(Call(method, urlsplit(url).path, int(status), headers))
    return calls


def read_answer(folder: Path, name: str) -> dict[str, object]:
    """Return an answer that the page has kept in a file."""
    found: dict[str, object] = json.loads((folder / name).read_text())
    return found


def _run(commands: str, folder: Path, variables: Mapping[str, str]) -> None:
    command = ["bash", "-c", commands]
    finished = subprocess.run(
        command, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True, timeout=600
    )
    assert finished.returncode == 0, finished.stdout[-2_000:] + finished.stderr[-2_000:]
