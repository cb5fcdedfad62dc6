"""Run every benchmark, in the order of the goals, and print one table: ``make bench-data``.

``python -m benchmarks [NAME...]`` runs some only; figures of the others are kept from the last run of this folder.
Results: ``benchmarks/results/data.jsonl`` (a line a claim) and ``data.md``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import QUICK, RESULTS_VARIABLE, ROOT, describe_machine
from benchmarks.goals import GOALS

RESULTS = ROOT / "benchmarks" / "results"
SCRIPTS = (
    "binning", "collate", "stream", "ray_stream", "latency", "start", "ingest", "plan_epoch", "s3", "projection",
)  # fmt: skip
logger = logging.getLogger("benchmarks")


def main() -> None:
    """Run the scripts one after another, each in a process of its own; exit code 1 if one failed."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("scripts", nargs="*", choices=[*SCRIPTS, []], help="which; default: all")
    chosen = parser.parse_args().scripts or list(SCRIPTS)
    RESULTS.mkdir(parents=True, exist_ok=True)
    lines = RESULTS / "data.jsonl"
    if set(chosen) == set(SCRIPTS):
        lines.unlink(missing_ok=True)
    failures = {name: error for name in chosen if (error := _run(name, lines))}
    claims = latest_claims(lines)
    table = write_table(claims, failures)
    (RESULTS / "data.md").write_text(table)
    print(table)
    if failures:
        sys.exit(1)


def _run(name: str, lines: Path) -> str:
    """Run one script; what went wrong, or nothing."""
    if not (ROOT / "benchmarks" / f"{name}.py").exists():
        return "there is no such script"
    logger.info("== %s", name)
    started = time.perf_counter()
    environment = {**os.environ, RESULTS_VARIABLE: str(lines)}
    done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=ROOT, env=environment, check=False)
    logger.info("== %s: %.0f s", name, time.perf_counter() - started)
    return f"ended with {done.returncode}" if done.returncode else ""


def latest_claims(lines: Path) -> dict[str, dict[str, Any]]:
    """The last record of each claim."""
    if not lines.exists():
        return {}
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    return {record["name"]: record for record in records if record.get("name") in GOALS}


def write_table(claims: dict[str, dict[str, Any]], failures: dict[str, str]) -> str:
    """The markdown table, in the order of the goals, and what has to be said of it."""
    rows = ["| what | ours | baseline | ratio | goal | met |", "| --- | --- | --- | --- | --- | --- |"]
    for name, goal in GOALS.items():
        claim = claims.get(name)
        if claim is None:
            rows.append(f"| {goal.what} | not measured | {goal.baseline} | | {goal.text} | **no figure** |")
            continue
        baseline = "-" if claim["baseline"] is None else f"{_figure(claim['baseline'])} ({goal.baseline})"
        ratio = f"{claim['ratio']:.3g}x" if claim["ratio"] and claim["baseline"] is not None else ""
        met = {True: "yes", False: "**NO**", None: "-" if goal.text == "-" else "**no baseline**"}[claim["met"]]
        rows.append(
            f"| {goal.what} | {_figure(claim['value'])} {goal.unit} | {baseline} | {ratio} | {goal.text} | {met} |"
        )
    notes = [f"- {GOALS[name].what}: {claims[name]['note']}" for name in GOALS if claims.get(name, {}).get("note")]
    notes += [f"- `benchmarks/{name}.py` {why}" for name, why in failures.items()]
    if QUICK:
        notes.append("- CYTORAY_BENCH_QUICK was set: small and short, these figures prove nothing.")
    busy = [name for name, claim in claims.items() if claim["load"] > 1.5 * (os.cpu_count() or 1)]
    if busy:
        notes.append(f"- Measured on a busy machine (load above 1.5 a core): {', '.join(busy)}.")
    return "\n".join([f"Machine: {json.dumps(describe_machine())}", "", *rows, "", *notes, ""])


def _figure(value: float) -> str:
    """A number a person can read."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
