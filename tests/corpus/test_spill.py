"""What an ingest leaves between its passes comes back as it was, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from cytoray.corpus.ingesting.spill import read_section, write_sections
from cytoray.errors import DigestError

SECTIONS = [b"first", b"", b"the third one"]


def test_sections_come_back_one_by_one(tmp_path):
    uri = str(tmp_path / "spill")
    index = write_sections(uri, SECTIONS)
    assert [read_section(uri, index, number) for number in range(3)] == SECTIONS


def test_every_flipped_bit_is_found_in_its_section_and_in_no_other(tmp_path):
    path = tmp_path / "spill"
    index = write_sections(str(path), SECTIONS)
    good = path.read_bytes()
    assert good == b"".join(SECTIONS)
    for bit in range(8 * len(good)):
        _flip(path, good, bit)
        hit = 0 if bit < 8 * len(SECTIONS[0]) else 2
        with pytest.raises(DigestError, match=r"spill: bytes .* have changed") as caught:
            read_section(str(path), index, hit)
        assert "start the ingest again" in caught.value.remedy
        assert read_section(str(path), index, 2 - hit) == SECTIONS[2 - hit]


def _flip(path: Path, good: bytes, bit: int) -> None:
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bad)
