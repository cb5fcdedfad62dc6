from __future__ import annotations

import copy
import gzip
import hashlib
import json
import re
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytoray.errors import ModelError
from cytoray.tokens.vocabulary import GeneVocabulary

TABLES = Path(__file__).parents[2].parent / "shared" / "reference" / "tables"
DATA = resources.files("cytoray.tokens").joinpath("data")


def test_default_is_the_public_vocabulary(census):
    assert len(census) == census.size == 60_697
    assert (census.pad_id, census.cls_id, census.index["<eoc>"]) == (60_694, 60_695, 60_696)
    assert [census.index[name] for name in ("A1BG", "A1BG-AS1", "A1CF")] == [0, 1, 2]
    assert "CD3D" in census
    assert "Cd3d" not in census
    assert GeneVocabulary.load_default() is census


def test_default_equals_the_file_of_a_released_model(census):
    path = TABLES / "scgpt_checkpoint_vocab.json.gz"
    if not path.exists():
        pytest.skip(f"{path} is absent: the packaged vocabulary is not compared with a released model's")
    assert census.index == json.loads(gzip.decompress(path.read_bytes()))


@given(tokens=st.lists(st.text(min_size=1, max_size=6), unique=True, max_size=30))
def test_json_round_trip_keeps_tokens_ids_and_digest(tokens: list[str]):
    vocabulary = GeneVocabulary(tokens)
    text = vocabulary.to_json()
    again = GeneVocabulary.from_json(text.encode())
    assert again == vocabulary
    assert again.digest() == vocabulary.digest() == hashlib.sha256(text.encode()).hexdigest()
    assert json.loads(text) == vocabulary.index


def test_missing_special_tokens_are_appended_in_order():
    assert GeneVocabulary(["B", "A"]).tokens == ("B", "A", "<pad>", "<cls>", "<eoc>")
    read = GeneVocabulary.from_json('{"<cls>": 1, "G": 0}')
    assert read.tokens == ("G", "<cls>", "<pad>", "<eoc>")
    assert (read.cls_id, read.pad_id) == (1, 2)


def test_reading_goes_by_id_not_by_place():
    assert GeneVocabulary.from_json('{"B": 1, "C": 2, "A": 0}').tokens[:3] == ("A", "B", "C")


def test_digest_tells_order_apart():
    assert GeneVocabulary(["A", "B"]).digest() != GeneVocabulary(["B", "A"]).digest()


@pytest.mark.parametrize(
    ("text", "offender"),
    [
        ('{"A": 0, "B": 2}', "'B' has id 2, expected 1"),
        ('{"A": 0, "B": 0}', "'B' has id 0, expected 1"),
        ('{"A": 1, "B": 2}', "'A' has id 1, expected 0"),
        ('{"A": -1, "B": 0}', "'A' has id -1, expected 0"),
        ('{"A": "0"}', "flat object"),
        ('{"A": true}', "flat object"),
        ('{"A": 0.0}', "flat object"),
        ('["A"]', "flat object"),
        ('{"A": 0', "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
    ],
)
def test_bad_vocabulary_files_are_refused_with_the_offender(text: str | bytes, offender: str):
    with pytest.raises(ModelError, match=re.escape(offender)) as caught:
        GeneVocabulary.from_json(text)
    assert caught.value.remedy


def test_a_token_listed_twice_is_refused():
    with pytest.raises(ModelError, match="'A' more than once"):
        GeneVocabulary(["A", "B", "A"])


def test_copies_are_equal_and_map_alike(panel):
    clone = copy.deepcopy(panel)
    assert clone == panel
    assert hash(clone) == hash(panel)
    assert clone.map_genes(["GENE3"]).ids.tolist() == [3]


@pytest.mark.parametrize("name", sorted(path.name for path in DATA.iterdir() if path.name.endswith(".gz")))
def test_packaged_files_are_the_documented_ones(name: str):
    packed = DATA.joinpath(name).read_bytes()
    assert packed[4:8] == bytes(4)  # no time in the header: the same packages give the same file
    digest = hashlib.sha256(gzip.decompress(packed)).hexdigest()
    assert f"`{name}`" in DATA.joinpath("LICENCES.md").read_text()
    assert digest in DATA.joinpath("LICENCES.md").read_text()


def test_packaged_files_are_small():
    assert sum(len(path.read_bytes()) for path in DATA.iterdir()) < 3e6
