"""What compiling costs: once a machine; and nothing fails where the machine code cannot be kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cytoray.tokens import binning, coding, compiling, kernels
from cytoray.tokens.compiling import as_input

TOKENISE = """
import numpy as np
from cytoray.tokens import coding, kernels
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.packed import pack
from cytoray.tokens.tokenizer import CellTokenizer, TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary

cells = SparseCells(np.arange(3, dtype="i4"), np.ones(3, "f4"), np.array([0, 3]), np.zeros(1, "u8"))
tokens = CellTokenizer(GeneVocabulary(["A", "B", "C"]), TokenizerConfig())(pack(cells))
assert tokens.gene_ids.tolist() == [4, 0, 1, 2], tokens
stats = [kernel.stats for kernel in (kernels.fill_tokens, coding.encode_rows, coding.sum_entry_hashes)]
print(sum(len(s.cache_misses) for s in stats), sum(len(s.cache_hits) for s in stats))
"""
SMALL = """
import numpy as np
from cytoray.tokens import coding

print(coding.longest(np.array([0, 3, 10])))
"""


def run(code: str, **variables: str) -> str:
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_second_process_compiles_nothing():
    run(TOKENISE)  # takes a quarter of a minute, once a machine
    assert run(TOKENISE) == "0 3"


def test_without_a_writable_cache_each_process_compiles_for_itself():
    # A locator for zip archives only: numba then finds no place for what stands in a folder.
    assert run(SMALL, NUMBA_CACHE_LOCATOR_CLASSES="ZipCacheLocator") == "7"


def test_a_change_in_any_kernel_file_makes_all_compile_anew():
    digest = compiling._digest_sources()
    for kernel in (kernels.fill_tokens, binning.spread_counts, coding.decode_genes):
        assert kernel._cache._cache_file._source_stamp[1] == digest
    sources = Path(compiling.__file__).parent.glob("*.py")
    assert {path.name for path in sources if "\n@compiled\n" in path.read_text()} <= {
        *compiling._SOURCES,
        "recoding.py",
    }


@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_inputs_are_copied_only_where_they_must_be(kind: type):
    array = np.arange(10, dtype=kind)
    assert np.shares_memory(as_input(array, kind), array)
    assert array.flags.writeable
    for other in (array[::2], array.astype(np.float64), np.frombuffer(b"x" + array.tobytes(), kind, offset=1)):
        taken = as_input(other, kind)
        assert taken.dtype == kind
        assert taken.tolist() == other.tolist()
        assert (taken.flags.c_contiguous, taken.flags.aligned, taken.flags.writeable) == (True, True, False)
