"""The reference of what users import: pages that mkdocstrings fills from signatures and docstrings."""

from __future__ import annotations

from pathlib import Path

from markdown_parts import MARK, heading

import cytoray
from cytoray import api
from cytoray.serving import client

PAGES = {  # file: (title, introduction, names)
    "functions": (
        "Tasks in one call",
        "Functions on an AnnData or a file; `import cytoray` offers them and loads nothing until one is used.",
        tuple(
            f"{cytoray._OFFERED[name]}.{name}" for name in cytoray.__all__ if cytoray._OFFERED[name] != "cytoray.api"
        ),
    ),
    "scgpt": ("scGPT", api.__doc__ or "", tuple(f"{getattr(api, name).__module__}.{name}" for name in api.__all__)),
    "client": (
        "The client",
        "See [the Python client](../../client.md).",
        tuple(
            f"{getattr(client, name).__module__}.{name}"
            for name in client.__all__
            if name[0].isupper() and not name.isupper()
        ),
    ),
    "corpora": (
        "Corpora",
        "See [Corpora](../../corpora.md).",
        (
            "cytoray.corpus.stream.open_stream",
            "cytoray.corpus.streaming.options.StreamOptions",
            "cytoray.corpus.torch_dataset.CorpusDataset",
            "cytoray.tokens.tokenizer_config.TokenizerConfig",
        ),
    ),
    "errors": ("Errors", "All errors that a user can cause or meet.", ("cytoray.errors",)),
}


def write(folder: Path) -> None:
    """Write ``python/``: an index and a page per topic."""
    folder.mkdir(parents=True, exist_ok=True)
    index = MARK + "# Python\n\nNothing here needs Ray, unless a page says so.\n\n"
    for file, (title, introduction, names) in PAGES.items():
        text = MARK + heading(1, title) + introduction.strip() + "\n\n"
        (folder / f"{file}.md").write_text(text + "".join(f"::: {name}\n\n" for name in names), encoding="utf-8")
        index += f"- [{title}]({file}.md): {', '.join(f'`{name.rpartition(chr(46))[2]}`' for name in names)}\n"
    (folder / "index.md").write_text(index, encoding="utf-8")
