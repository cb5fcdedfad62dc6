"""Choose cells by an expression over their obs table: ``disease == 'normal' and is_primary_data``.

The language is the safe part of ``DataFrame.query``: columns (in backticks if a name is not an identifier), constants,
comparisons, ``and``, ``or``, ``not``, ``in``, arithmetic, and a few methods that look at one cell at a time, so that a
table may be processed in pieces. A missing value satisfies no comparison; ``isna()`` finds it.
"""

# C cells

from __future__ import annotations

import ast
import difflib
import functools
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytoray.errors import CorpusError
from cytoray.tokens.labels import label_text, label_texts

Mask = npt.NDArray[np.bool_]
INDEX = "index"  # the cells' names, unless a column is called so
_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}
_METHODS: tuple[str, ...] = ("isin", "isna", "isnull", "notna", "notnull", "between", "abs")
_TEXT_METHODS: tuple[str, ...] = (
    "contains", "startswith", "endswith", "match", "fullmatch", "lower", "upper", "strip", "len", "isdigit",
)  # fmt: skip
_BACKTICKS = re.compile(r"`([^`]+)`")
_MAX_CHARACTERS = 10_000


@dataclass(frozen=True)
class _Parsed:
    """A syntax tree, and the columns behind its placeholders for names that are not identifiers."""

    text: str
    tree: ast.expr
    quoted: Mapping[str, str]


def select_rows(frame: pd.DataFrame, expression: str, *, where: str) -> Mask:
    """Which rows (C,) of ``frame`` satisfy ``expression``; ``where`` names the table in errors.

    Raises CorpusError for an unknown column (with the nearest ones), a mistake of syntax, or types that do not compare.
    """
    parsed = _parse(expression, where)
    try:
        value = _Evaluation(frame, parsed, where).value(parsed.tree)
    except (TypeError, ValueError, AttributeError, re.error) as error:  # what pandas says of types that do not fit
        raise _mistake(expression, where, f"its values do not fit ({error})", "Compare texts with texts.") from error
    return _as_mask(value, len(frame), functools.partial(_mistake, expression, where))


def selected_columns(expression: str, *, where: str) -> tuple[str, ...]:
    """The names that ``expression`` looks up, sorted: the columns of a table that it needs."""
    parsed = _parse(expression, where)
    names = {node.id for node in ast.walk(parsed.tree) if isinstance(node, ast.Name)}
    return tuple(sorted({parsed.quoted.get(name, name) for name in names}))


@functools.lru_cache(maxsize=64)
def _parse(expression: str, where: str) -> _Parsed:
    """Read the expression as one Python expression, names in backticks put aside."""
    quoted: dict[str, str] = {}

    def put_aside(match: re.Match[str]) -> str:
        """Replace a quoted name by an identifier."""
        name = f"_quoted_{len(quoted)}"
        quoted[name] = match[1]
        return name

    if len(expression) > _MAX_CHARACTERS:
        raise _mistake(expression[:40] + "…", where, "it is too long", "Put a column of flags into obs instead.")
    try:
        tree = ast.parse(_BACKTICKS.sub(put_aside, expression.strip()), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        why = getattr(error, "msg", None) or str(error)
        remedy = "Write it like disease == 'normal' and is_primary_data; put names with spaces in backticks."
        raise _mistake(expression, where, f"it cannot be read ({why})", remedy) from error
    return _Parsed(expression, tree, quoted)


@dataclass(frozen=True)
class _Evaluation:
    """Walks a syntax tree over one table."""

    frame: pd.DataFrame
    parsed: _Parsed
    where: str

    def value(self, node: ast.expr) -> Any:
        """The value of one node: a series, a constant, or a list of constants."""
        match node:
            case ast.Constant(value=constant):
                return constant
            case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
                return [self._constant(item) for item in items]
            case ast.Name(id=name):
                return self._column(self.parsed.quoted.get(name, name))
            case ast.BoolOp(op=joint, values=parts):
                return self._joined(joint, parts)
            case ast.UnaryOp(op=ast.Not() | ast.Invert(), operand=inner):
                return ~self._mask(inner)
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return -self.value(inner)
            case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
                return self._mask(left) & self._mask(right)
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return self._mask(left) | self._mask(right)
            case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _ARITHMETIC:
                return _ARITHMETIC[type(sign)](_plain(self.value(left)), _plain(self.value(right)))
            case ast.Compare(left=left, ops=signs, comparators=others):
                return self._compared(left, signs, others)
            case ast.Call(func=ast.Attribute() as method, args=args, keywords=keywords):
                return self._called(method, args, keywords)
        raise self._refused(ast.unparse(node))

    def _column(self, name: str) -> pd.Series[Any]:
        if name in self.frame:
            return self.frame[name]
        if name == INDEX:
            return pd.Series(self.frame.index.astype(str), index=self.frame.index)
        there = [str(column) for column in self.frame.columns]
        near = difflib.get_close_matches(name, there, n=3, cutoff=0.5)
        remedy = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise CorpusError(
            f"{self.where}: the selection `{self.parsed.text}` names {name!r}, which is not a column of obs.",
            remedy=f"{remedy}Columns there: {', '.join(there) or 'none'}.",
            column=name,
            columns=there,
        )

    def _constant(self, node: ast.expr) -> Any:
        """A constant inside a list."""
        value = self.value(node)
        if isinstance(value, pd.Series | list):
            raise self._refused(ast.unparse(node))
        return value

    def _mask(self, node: ast.expr) -> Mask:
        fault = functools.partial(_mistake, self.parsed.text, self.where)
        return _as_mask(self.value(node), len(self.frame), fault, what=ast.unparse(node))

    def _joined(self, joint: ast.boolop, parts: Sequence[ast.expr]) -> Mask:
        masks = [self._mask(part) for part in parts]
        combine = np.logical_and if isinstance(joint, ast.And) else np.logical_or
        return np.asarray(functools.reduce(combine, masks))

    def _compared(self, left: ast.expr, signs: Sequence[ast.cmpop], others: Sequence[ast.expr]) -> Mask:
        """A chain of comparisons, each true only if neither side is missing."""
        held = np.ones(len(self.frame), dtype=bool)
        first = self.value(left)
        for sign, node in zip(signs, others, strict=True):
            second = self.value(node)
            held &= self._pair(first, sign, second)
            first = second
        return held

    def _pair(self, first: Any, sign: ast.cmpop, second: Any) -> Mask:
        there = _there(first, len(self.frame)) & _there(second, len(self.frame))
        if type(sign) in (ast.In, ast.NotIn, ast.Eq, ast.NotEq):
            first, second = _same_kind(first, second)
        if isinstance(second, list) and type(sign) in (ast.In, ast.NotIn, ast.Eq, ast.NotEq):  # == [..] as in pandas
            if not isinstance(first, pd.Series):
                raise self._refused("a list compared with something that is not a column")
            inside = first.isin(second).to_numpy()
            return there & (inside if isinstance(sign, ast.In | ast.Eq) else ~inside)
        if type(sign) not in _COMPARISONS or isinstance(second, list):
            raise self._refused(type(sign).__name__)
        result = _COMPARISONS[type(sign)](_plain(first), _plain(second))
        if isinstance(result, pd.Series):
            return np.asarray(there & result.fillna(False).to_numpy(bool))
        return there & bool(result)

    def _called(self, method: ast.Attribute, args: Sequence[ast.expr], keywords: Sequence[ast.keyword]) -> Any:
        """A method of a column, or of its ``.str``."""
        owner, known = method.value, _METHODS
        is_text = isinstance(owner, ast.Attribute) and owner.attr == "str"
        if is_text:
            assert isinstance(owner, ast.Attribute)
            owner, known = owner.value, _TEXT_METHODS
        if method.attr not in known:
            raise self._refused(f".{method.attr}()")
        column = self.value(owner)
        if not isinstance(column, pd.Series):
            raise self._refused(ast.unparse(owner))
        face = _plain(column).str if is_text else _plain(column)
        options = {str(keyword.arg): self.value(keyword.value) for keyword in keywords}
        if method.attr == "isin" and len(args) == 1 and not options:
            face, values = _same_kind(face, self.value(args[0]))
            return face.isin(values)
        return getattr(face, method.attr)(*(self.value(argument) for argument in args), **options)

    def _refused(self, part: str) -> CorpusError:
        methods = ", ".join((*_METHODS, *(f"str.{name}" for name in _TEXT_METHODS)))
        remedy = f"Known are columns, constants, comparisons, and, or, not, in, + - * / %, and the methods {methods}."
        return _mistake(self.parsed.text, self.where, f"`{part}` is not part of the language of selections", remedy)


def _plain(value: Any) -> Any:
    """A categorical column as the values of its cells, so that it compares like any other."""
    if isinstance(value, pd.Series) and isinstance(value.dtype, pd.CategoricalDtype):
        return value.astype(value.cat.categories.dtype)
    return value


def _same_kind(first: Any, second: Any) -> tuple[Any, Any]:
    """Both sides of an equality as they are if they are both texts or both not; else as the texts of labels.

    So ``cluster == '0'`` and ``cluster in ['0', '1']`` hold for the same cells whether a file keeps ``cluster`` as
    text, as integers or as floats.
    """
    kinds = {_holds_text(first), _holds_text(second)} - {None}
    if kinds in ({True}, {False}, set()):
        return first, second
    return _as_labels(first), _as_labels(second)


def _holds_text(value: Any) -> bool | str | None:
    """Whether all values are texts; None without any value, "mixed" for texts beside other values."""
    if isinstance(value, pd.Series):
        plain = _plain(value)
        if plain.dtype.kind in "mM":
            return None  # pandas compares dates with texts itself
        found = pd.api.types.infer_dtype(plain, skipna=True)
        return None if found == "empty" else "mixed" if found.startswith("mixed") else found == "string"
    items = [item for item in (value if isinstance(value, list) else [value]) if item is not None]
    texts = {isinstance(item, str) for item in items}
    return "mixed" if len(texts) > 1 else next(iter(texts), None)


def _as_labels(value: Any) -> Any:
    """The texts of a column, of a list or of one constant."""
    if isinstance(value, pd.Series):
        return pd.Series(label_texts(value), index=value.index, dtype=object, name=value.name)
    return label_texts(value) if isinstance(value, list) else label_text(value)


def _there(value: Any, num_rows: int) -> Mask:
    """Where ``value`` is not missing, shape (C,)."""
    if isinstance(value, pd.Series):
        return value.notna().to_numpy()
    return np.full(num_rows, value is not None)


def _as_mask(value: Any, num_rows: int, fault: Callable[[str, str], CorpusError], *, what: str = "it") -> Mask:
    """The truth of a value, row by row; only flags have one."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, bool):
        return np.full(num_rows, value)
    if isinstance(value, pd.Series):
        plain = _plain(value)
        known = plain.dropna()
        if known.map(lambda item: isinstance(item, bool | np.bool_)).all():
            return np.asarray(plain.where(plain.notna(), other=False).astype(bool))
    raise fault(f"`{what}` is neither true nor false", "Compare it with something: column == 'value'.")


def _mistake(expression: str, where: str, problem: str, remedy: str) -> CorpusError:
    return CorpusError(f"{where}: the selection `{expression}`: {problem}.", remedy=remedy, expression=expression)
