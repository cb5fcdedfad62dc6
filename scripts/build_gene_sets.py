"""Build the gene sets packaged in ``cytoray.tokens`` from two Debian packages and one wheel of PyPI.

Run ``python scripts/build_gene_sets.py`` on Debian 12: it downloads the packages (50 MB) with apt-get and the wheel
(3 MB) with pip, checks their SHA-256 and rewrites ``platform/cytoray/tokens/data/*.gmt.gz``. The same packages always
give the same text; their sources and licences are listed in ``platform/cytoray/tokens/data/LICENCES.md``.
"""

from __future__ import annotations

import argparse
import hashlib
import sqlite3
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from build_gene_tables import DATA, Wheel, read_member, write_lines

from cytoray.tokens.gene_table import human_symbols, load_human_genes

RELEASE = "GO 2022-07-01"
IMMUNE, FACTOR = "GO:0002376", "GO:0003700"  # immune system process; DNA-binding transcription factor activity


@dataclass(frozen=True)
class Package:
    """One pinned Debian package and the SQLite file we read from it."""

    requirement: str
    file_name: str
    sha256: str
    member: str


GO = Package(
    "r-bioc-go.db=3.16.0-1",
    "r-bioc-go.db_3.16.0-1_all.deb",
    "6cf9c43b97212811ecb7ad0d7cde12e76f984ab7494a59c02455239a9dd3243d",
    "usr/lib/R/site-library/GO.db/extdata/GO.sqlite",
)
HUMAN = Package(
    "r-bioc-org.hs.eg.db=3.16.0-1",
    "r-bioc-org.hs.eg.db_3.16.0-1_all.deb",
    "0f61810d35b858915b1a9787d8dcab08b7e164c14c20a9e1d86eb9837308c2c2",
    "usr/lib/R/site-library/org.Hs.eg.db/extdata/org.Hs.eg.sqlite",
)
# MSigDB 7.5.1: its hallmarks and canonical pathways, KEGG's and BioCarta's (which may not be passed on) among them.
_PEGASUS = (
    "pegasuspy==1.10.2",
    "pegasuspy-1.10.2-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    "76cb096a198aeb2a8cfd07970e7c46c313bbc894a48c7194902428adbc7a7408",
)
HALLMARKS = Wheel(*_PEGASUS, "pegasus/data_files/h.all.v7.5.1.symbols.gmt")
PATHWAYS = Wheel(*_PEGASUS, "pegasus/data_files/c2.cp.v7.5.1.symbols.gmt")
MSIGDB = {"hallmark": (HALLMARKS, "HALLMARK_"), "reactome": (PATHWAYS, "REACTOME_"), "wikipathways": (PATHWAYS, "WP_")}


def open_database(package: Package, folder: Path) -> sqlite3.Connection:
    """Open the package's database, downloaded into ``folder`` if it is not there; a wrong digest ends the build."""
    path = folder / package.file_name
    if not path.exists():
        subprocess.run(["apt-get", "download", "-qq", package.requirement], cwd=folder, check=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != package.sha256:
        sys.exit(f"{path} has SHA-256 {digest}, expected {package.sha256}.")
    unpacked = folder / package.file_name.removesuffix(".deb")
    subprocess.run(["dpkg-deb", "--extract", str(path), str(unpacked)], check=True)
    return sqlite3.connect(f"file:{unpacked / package.member}?mode=ro", uri=True)


def gene_symbols(human: sqlite3.Connection) -> dict[int, str]:
    """Row id of a gene -> its symbol; those that the gene table lacks (ND1) are replaced by way of Ensembl ids."""
    known = human_symbols()
    by_ensembl = {gene.ensembl_id: gene.symbol for gene in load_human_genes() if gene.ensembl_id and gene.symbol}
    ensembl: dict[int, set[str]] = defaultdict(set)
    for row, ensembl_id in human.execute("SELECT _id, ensembl_id FROM ensembl"):
        ensembl[row].add(by_ensembl.get(ensembl_id, ""))
    symbols: dict[int, str] = dict(human.execute("SELECT _id, symbol FROM gene_info"))
    own = set(symbols.values())  # a read-through (TBC1D7-LOC100130357) does not become its gene
    for row, symbol in symbols.items():
        others = ensembl[row] - own - {""}
        if symbol not in known and len(others) == 1:
            symbols[row] = others.pop()
    return symbols


def annotated(human: sqlite3.Connection, ontology: str, symbols: Mapping[int, str]) -> dict[str, set[str]]:
    """GO id -> symbols of the genes annotated with the term or with one below it, by any relation of GO."""
    genes: dict[str, set[str]] = defaultdict(set)
    for row, term in human.execute(f"SELECT DISTINCT _id, go_id FROM go_{ontology}_all"):
        genes[term].add(symbols[row])
    return genes


def below(go: sqlite3.Connection, ontology: str, root: str) -> set[str]:
    """The GO ids of a term and of all below it."""
    query = f"""SELECT lower.go_id FROM go_{ontology}_offspring AS pair JOIN go_term AS upper ON upper._id = pair._id
        JOIN go_term AS lower ON lower._id = pair._offspring_id WHERE upper.go_id = ?"""
    return {root, *(term for (term,) in go.execute(query, (root,)))}


def gmt_lines(sets: Mapping[str, Iterable[str]], names: Mapping[str, str], smallest: int, largest: int) -> list[str]:
    """The terms of so many genes as lines of a .gmt file, by GO id; GO's names are unique, but change."""
    sized = {term: sorted(genes) for term, genes in sorted(sets.items())}
    return [
        "\t".join((f"{names[term]} ({term})", RELEASE, *genes))
        for term, genes in sized.items()
        if smallest <= len(genes) <= largest
    ]


def ontology_files(folder: Path) -> dict[str, list[str]]:
    """The lines of the files made from the Gene Ontology."""
    with closing(open_database(GO, folder)) as go, closing(open_database(HUMAN, folder)) as human:
        symbols, names = gene_symbols(human), dict(go.execute("SELECT go_id, term FROM go_term"))
        processes = annotated(human, "bp", symbols)
        functions = annotated(human, "mf", symbols)
        immune = below(go, "bp", IMMUNE) & processes.keys()
        factors = below(go, "mf", FACTOR) & functions.keys()
    return {
        "go_bp": gmt_lines(processes, names, 10, 500),
        "go_bp_immune": gmt_lines({term: processes[term] for term in immune}, names, 5, 2_500),
        "go_tf": gmt_lines({term: functions[term] for term in factors}, names, 1, len(symbols)),
    }


def msigdb_lines(text: str, prefix: str) -> list[str]:
    """The sets of one source, by name; the description names the release instead of a web page."""
    rows = sorted(line.split("\t") for line in text.splitlines() if line.startswith(prefix))
    return ["\t".join((name, "MSigDB 7.5.1", *sorted(genes))) for name, _, *genes in rows]


def main() -> None:
    """Build all files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", type=Path, help="folder to keep the downloads in, and to reuse them from")
    packages: Path | None = parser.parse_args().packages
    with tempfile.TemporaryDirectory() as temporary:
        folder = packages or Path(temporary)
        files = ontology_files(folder)
        for name, (wheel, prefix) in MSIGDB.items():
            files[name] = msigdb_lines(read_member(wheel, folder), prefix)
    for name, lines in files.items():
        write_lines(DATA / f"{name}.gmt.gz", lines)


if __name__ == "__main__":
    main()
