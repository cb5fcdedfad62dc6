"""Seeded mutations of valid bodies, and the outcomes of parsing them."""

from __future__ import annotations

import random
import re
import resource
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cytoray.errors import RequestError
from cytoray.serving.problems import CASES

_BYTES = (b"\x00", b"\xff", b"\x7f", b"\x80", b'"', b"[", b"]", b"{", b"}", b",", b"-", b"e", b"\\", b"9", b"\n")
_NUMBERS = (0, 1, -1, 2**31 - 1, -(2**31), 2**16, 255, 40, 41, 7)
_TOKENS = (
    *(b"null", b"true", b"-1", b"0", b"1e999", b"1e30", b"-0.0", b"NaN", b"Infinity", b"01", b"1844674407370955161"),
    *(b'"x"', b'"\\ud800"', b'"\\u0069"', b"[]", b"{}", b'{"i":[0],"v":[1]}', b'"i":[3]', b'"cells"', b"[0,1]"),
)  # fmt: skip
_TOKEN = re.compile(rb'"[^"]*"|-?\d[\d.eE+-]*|[\[\]{}:,]')


@dataclass
class Outcomes:
    """Counts of the answers to fuzzed bodies."""

    by_code: Counter[str] = field(default_factory=Counter)

    def parse(self, body: bytes, run: Callable[[bytes], object]) -> None:
        """Run a parser on one body; anything but an answer or an error of the catalogue passes through."""
        refused = None
        try:
            run(body)
        except RequestError as error:
            refused = error
        if refused is not None:
            assert 400 <= CASES[refused.code].status < 500, refused.code
            assert len(str(refused)) < 3_000
        self.by_code["answered" if refused is None else refused.code] += 1

    def __str__(self) -> str:
        return ", ".join(f"{code} {count:,}" for code, count in self.by_code.most_common())


def fuzz(
    seeds: Sequence[bytes], run: Callable[[bytes], object], *, num: int, seed: int = 0, start: int = 0
) -> Outcomes:
    """Parse ``num`` mutations of the ``seeds``; a failure names the number of the mutation, which repeats it."""
    outcomes = Outcomes()
    rng = random.Random()
    for number in range(start, start + num):
        rng.seed(seed << 48 | number)
        body = mutated(seeds, rng)
        try:
            outcomes.parse(body, run)
        except Exception as error:
            raise AssertionError(f"mutation {number} of seed {seed}: {body[:2_000]!r}") from error
    return outcomes


def mutated(seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """Return one of the bodies after one to four mutations; some are left as they are."""
    body = rng.choice(seeds)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3, 4))):
        body = rng.choice(_MUTATIONS)(body, rng, seeds)
    return body


def resident_bytes() -> int:
    """Return the memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _flip(body: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    if not body:
        return body
    place = rng.randrange(len(body))
    return body[:place] + bytes([body[place] ^ (1 << rng.randrange(8))]) + body[place + 1 :]


def _put(body: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    place = rng.randrange(len(body) + 1)
    return body[:place] + rng.choice(_BYTES) + body[place + rng.randrange(2) :]


def _cut(body: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    return body[: rng.randrange(len(body) + 1)]


def _drop(body: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    start = rng.randrange(len(body) + 1)
    return body[:start] + body[start + rng.randrange(64) :]


def _double(body: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    start = rng.randrange(len(body) + 1)
    part = body[start : start + rng.randrange(200)]
    return body[:start] + part * rng.choice((2, 2, 3, 50)) + body[start + len(part) :]


def _overwrite(body: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    """Overwrite an aligned word: lengths, offsets and sizes of binary formats."""
    place = 4 * rng.randrange(len(body) // 4 + 1)
    word = struct.pack(rng.choice(("<i", "<q", ">i")), rng.choice(_NUMBERS))
    return body[:place] + word + body[place + len(word) :]


def _splice(body: bytes, rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    other = rng.choice(seeds)
    return body[: rng.randrange(len(body) + 1)] + other[rng.randrange(len(other) + 1) :]


def _replace_token(body: bytes, rng: random.Random, _: Sequence[bytes]) -> bytes:
    """Replace or insert a token of JSON near a random place."""
    found = _TOKEN.search(body, rng.randrange(len(body) + 1))
    if found is None:
        return body
    return body[: found.start()] + rng.choice(_TOKENS) + body[found.end() if rng.random() < 0.8 else found.start() :]


_MUTATIONS = (_flip, _put, _cut, _drop, _double, _overwrite, _overwrite, _splice, _replace_token, _replace_token)
