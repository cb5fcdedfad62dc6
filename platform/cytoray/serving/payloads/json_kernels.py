"""Compiled scanner of JSON bodies: finds the arrays of numbers of cells, checks their grammar and reads them.

Numbers become NumPy arrays without a Python object each. Everything else of a body is left to pydantic.
"""

# B bytes of a body, C cells, N numbers of one array

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cytoray.tokens.compiling import Scalar, compiled

Bytes = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

MAX_DEPTH = 8
OK, TOO_DEEP, TOO_MANY = 0, 1, 2  # what ``scan_body`` returns
START, STOP, COUNT, NOT_INTEGER = 0, 1, 2, 3  # columns of a span; NOT_INTEGER: the first such place, or -1
_SAFE_DIGITS, _MOST_INTEGER_DIGITS, _SAFE_EXPONENT = 15, 18, 22  # exact in float64; in int64; powers of ten in float64
_QUOTE, _COMMA, _OPEN, _CLOSE = 34, 44, 91, 93
_NAN, _INFINITY = np.frombuffer(b"NaN", np.uint8), np.frombuffer(b"Infinity", np.uint8)
_CELLS = np.frombuffer(b"cells", np.uint8)
_POWERS = 10.0 ** np.arange(_SAFE_EXPONENT + 1)


@compiled
def skip_space(body: Bytes, at: Scalar) -> Scalar:
    """Return the next place that is not white space."""
    while at < len(body) and (body[at] == 32 or body[at] == 10 or body[at] == 13 or body[at] == 9):
        at += 1
    return at


@compiled
def skip_word(body: Bytes, at: Scalar) -> Scalar:
    """Return the place after NaN or Infinity, -1 if it is neither."""
    word = _NAN if at < len(body) and body[at] == 78 else _INFINITY
    if at + len(word) > len(body):
        return -1
    for offset in range(len(word)):
        if body[at + offset] != word[offset]:
            return -1
    return at + len(word)


@compiled
def skip_digits(body: Bytes, at: Scalar) -> Scalar:
    """Return the place after the digits at ``at``."""
    while at < len(body) and 48 <= body[at] <= 57:
        at += 1
    return at


@compiled
def skip_number(body: Bytes, at: Scalar) -> tuple[Scalar, Scalar]:
    """Return the place after the number at ``at`` (-1 if it is not one), and whether it is an integer of 18 digits."""
    if at < len(body) and body[at] == 45:
        at += 1
    if at < len(body) and (body[at] == 78 or body[at] == 73):
        return skip_word(body, at), False
    stop = skip_digits(body, at)
    if stop == at or (body[at] == 48 and stop > at + 1):
        return -1, False
    is_integer = stop - at <= _MOST_INTEGER_DIGITS
    if stop < len(body) and body[stop] == 46:
        at, is_integer = stop + 1, False
        stop = skip_digits(body, at)
        if stop == at:
            return -1, False
    if stop < len(body) and (body[stop] == 101 or body[stop] == 69):
        at, is_integer = stop + 1, False
        if at < len(body) and (body[at] == 43 or body[at] == 45):
            at += 1
        stop = skip_digits(body, at)
        if stop == at:
            return -1, False
    return stop, is_integer


@compiled
def skip_array(body: Bytes, at: Scalar, span: Int64) -> Scalar:
    """Return the place after the array of numbers that opens at ``at``, and describe it; -1 if it is something else."""
    span[START], span[COUNT], span[NOT_INTEGER] = at + 1, 0, -1
    while True:
        at, is_integer = skip_number(body, skip_space(body, at + 1))
        if at < 0:
            return -1
        if not is_integer and span[NOT_INTEGER] < 0:
            span[NOT_INTEGER] = span[COUNT]
        span[COUNT] += 1
        at = skip_space(body, at)
        if at >= len(body):
            return -1
        if body[at] == _CLOSE:
            span[STOP] = at
            return at + 1
        if body[at] != _COMMA:
            return -1


@compiled
def blank(body: Bytes, spans: Int64) -> None:
    """Replace the numbers of each array by one zero and spaces, so that positions in messages stay right."""
    for cell in range(len(spans)):
        for side in range(2):
            stop = spans[cell, side, STOP]
            for at in range(spans[cell, side, START], stop):
                if body[at] != 10:
                    body[at] = 32
            if stop > 0:
                body[stop - 1] = 48


@compiled
def skip_text(body: Bytes, at: Scalar) -> Scalar:
    """Return the place of the quote that closes the text at ``at``, or the end of the body."""
    while at < len(body) and body[at] != _QUOTE:
        at += 2 if body[at] == 92 else 1
    return min(at, len(body))


@compiled
def scan_body(body: Bytes, spans: Int64, most_entries: Scalar) -> tuple[Scalar, Scalar, Scalar]:
    """Find the arrays of numbers ``i`` and ``v`` of ``cells`` in a body, and write their ``spans`` (C, 2, 4).

    Cells beyond C are counted as well. Returns OK, TOO_DEEP or TOO_MANY (entries outside these arrays), the number of
    cells, and that of the other entries.
    """
    kinds = np.zeros(MAX_DEPTH + 1, np.uint8)
    span = np.zeros(4, np.int64)
    depth, cell, entries, at = 0, -1, 0, 0
    key, key_stop, in_cells = 0, 0, False
    while at < len(body):
        byte = body[at]
        if byte == _QUOTE:
            key, key_stop = at + 1, skip_text(body, at + 1)
            at = key_stop
        elif byte == _COMMA:
            entries += 1
        elif byte == _OPEN or byte == 123:
            in_cell = in_cells and depth == 3 and kinds[2] == _OPEN and kinds[3] == 123
            if in_cell and byte == _OPEN and key_stop == key + 1 and (body[key] == 105 or body[key] == 118):
                stop = skip_array(body, at, span)
                if stop > 0:
                    if cell < len(spans):
                        spans[cell, 0 if body[key] == 105 else 1] = span
                    at = stop
                    continue
            depth, entries = depth + 1, entries + 1
            if depth > MAX_DEPTH:
                return TOO_DEEP, cell + 1, entries
            kinds[depth] = byte
            if depth == 2:
                in_cells = key_stop == key + len(_CELLS) and is_cells(body, key)
            elif depth == 3 and in_cells and byte == 123:
                cell += 1
        elif byte == _CLOSE or byte == 125:
            depth = max(depth - 1, 0)
        at += 1
        if entries > most_entries:
            return TOO_MANY, cell + 1, entries
    return OK, cell + 1, entries


@compiled
def is_cells(body: Bytes, at: Scalar) -> Scalar:
    """Return whether the text at ``at`` is ``cells``."""
    same = True
    for offset in range(len(_CELLS)):
        same = same and body[at + offset] == _CELLS[offset]
    return same


@compiled
def read_integers(body: Bytes, at: Scalar, integers: Int64) -> None:
    """Read an array of integers that ``scan_body`` has checked; ``at`` is the place after its bracket."""
    for place in range(len(integers)):
        at = skip_space(body, at)
        is_negative = body[at] == 45
        at += 1 if is_negative else 0
        value: Scalar = 0
        while 48 <= body[at] <= 57:
            value = 10 * value + (body[at] - 48)
            at += 1
        integers[place] = -value if is_negative else value
        at = skip_space(body, at) + 1


@compiled
def read_decimals(body: Bytes, at: Scalar, decimals: Float64) -> Scalar:
    """Read an array of numbers that ``scan_body`` has checked; returns False at the first that is not simple.

    A number of up to 15 digits times a power of ten up to 22 is exact in float64, and so is one operation on the two.
    """
    for place in range(len(decimals)):
        at = skip_space(body, at)
        is_negative = body[at] == 45
        at += 1 if is_negative else 0
        if body[at] > 57:  # NaN, Infinity
            return False
        mantissa: Scalar = 0
        digits, shift, after_point = 0, 0, False
        while body[at] == 46 or 48 <= body[at] <= 57:
            if body[at] == 46:
                after_point = True
            else:
                digits += 1 if digits or body[at] != 48 else 0
                mantissa = 10 * mantissa + (body[at] - 48) if digits <= _SAFE_DIGITS else mantissa
                shift -= 1 if after_point else 0
            at += 1
        if body[at] == 101 or body[at] == 69:
            at, exponent = read_exponent(body, at + 1)
            shift += exponent
        if digits > _SAFE_DIGITS or shift < -_SAFE_EXPONENT or shift > _SAFE_EXPONENT:
            return False
        value = mantissa * _POWERS[shift] if shift >= 0 else mantissa / _POWERS[-shift]
        decimals[place] = -value if is_negative else value
        at = skip_space(body, at) + 1
    return True


@compiled
def read_exponent(body: Bytes, at: Scalar) -> tuple[Scalar, Scalar]:
    """Return the place after the exponent at ``at``, and the exponent, cut at 1000."""
    is_negative = body[at] == 45
    at += 1 if is_negative or body[at] == 43 else 0
    value: Scalar = 0
    while 48 <= body[at] <= 57:
        value = min(10 * value + (body[at] - 48), 1000)
        at += 1
    return at, -value if is_negative else value
