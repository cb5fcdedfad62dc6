"""The explorer's built files, which are checked in, belong to the source: `make explorer` was not forgotten."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "serve" / "explorer"
BUILT = ROOT / "platform" / "cytoray" / "pages" / "explorer"


def test_the_built_script_names_its_source() -> None:
    files = [*(path for path in (SOURCE / "src").rglob("*") if path.is_file())]
    files += [SOURCE / "package-lock.json", SOURCE / "build.mjs"]
    digest = hashlib.sha256()
    for name in sorted(str(path.relative_to(SOURCE)) for path in files):
        digest.update(name.encode() + b"\0" + (SOURCE / name).read_bytes() + b"\0")
    assert f"(source {digest.hexdigest()})" in (BUILT / "explorer.js").read_text().partition("\n")[0], (
        "the page was changed: run `make explorer` and commit platform/cytoray/pages/explorer"
    )


def test_building_gives_the_same_files(tmp_path: Path) -> None:
    if shutil.which("node") is None or not (SOURCE / "node_modules" / "esbuild").exists():
        pytest.skip("node or serve/explorer/node_modules is missing: `make explorer` installs the latter")
    subprocess.run(["node", str(SOURCE / "build.mjs"), str(tmp_path)], check=True, timeout=120)
    for path in BUILT.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_nothing_is_fetched_from_elsewhere() -> None:
    for path in BUILT.iterdir():
        text = path.read_text()
        for start in ('src="http', 'href="http', "url(http", 'import("http', "@import"):
            assert start not in text, (path.name, start)
