"""Mistakes planted in our own configuration files: each knows its key path, its line, and what should be suggested.

Nothing of the code under test is used: keys and lines come from PyYAML's node graph of the intact file, and what is
wrong for a key from its field's annotation and bounds.
"""

from __future__ import annotations

import random
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import annotated_types as at
import yaml
from pydantic import BaseModel

Found = tuple["Place", random.Random]


@dataclass(frozen=True)
class Mutation:
    """A file with one mistake."""

    name: str  # kind of the mistake, file and key
    text: str
    line: int
    path: str  # of the key; of YAML that does not parse, the key that stands on its line
    meant: str = ""  # what should be suggested
    in_yaml: bool = False  # the file is not YAML any more

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Place:
    """A key of a file: its nodes, its field, and the model that has the field."""

    path: tuple[str | int, ...]
    key: yaml.Node
    value: yaml.Node
    model: type[BaseModel]
    name: str
    text: str
    siblings: tuple[str, ...]
    in_flow: bool

    @property
    def info(self) -> Any:
        return self.model.model_fields[self.name]

    @property
    def dotted(self) -> str:
        return ".".join(map(str, self.path))

    @property
    def line(self) -> int:
        return self.key.start_mark.line + 1

    @property
    def indent(self) -> str:
        """What stands before the key on its line."""
        start = self.key.start_mark
        return self.text[start.index - start.column : start.index]

    @property
    def starts_a_line(self) -> bool:
        return not self.in_flow and not self.indent.strip()

    def with_value(self, written: str) -> str:
        start, end = self.value.start_mark.index, self.value.end_mark.index
        if isinstance(self.value, yaml.ScalarNode) or self.value.flow_style:
            return f"{self.text[:start]}{written}{self.text[end:]}"
        # a block: its comments before it and the line breaks behind it go too
        begin, end = self.key.end_mark.index, end - self.value.end_mark.column
        return f"{self.text[:begin]}: {written}\n{self.text[end:]}"

    def with_key(self, written: str) -> str:
        return f"{self.text[: self.key.start_mark.index]}{written}{self.text[self.key.end_mark.index :]}"

    def before(self, line: str) -> str:
        at_ = self.key.start_mark.index - self.key.start_mark.column
        return f"{self.text[:at_]}{line}\n{self.text[at_:]}"


def arguments(annotation: Any) -> list[Any]:
    """The members of a union, each without ``Annotated``."""
    if typing.get_origin(annotation) is typing.Annotated:
        return arguments(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [one for each in typing.get_args(annotation) for one in arguments(each)]
    return [annotation]


def submodel(annotation: Any) -> type[BaseModel] | None:
    for one in arguments(annotation):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return one
        for inner in typing.get_args(one):
            if (found := submodel(inner)) is not None:
                return found
    return None


def walk(
    node: yaml.Node,
    model: type[BaseModel] | None,
    text: str,
    path: tuple[str | int, ...] = (),
    *,
    in_flow: bool = False,
) -> Iterator[Place]:
    """All keys of a mapping that are fields."""
    if isinstance(node, yaml.SequenceNode):
        for position, child in enumerate(node.value):
            yield from walk(child, model, text, (*path, position), in_flow=in_flow or bool(node.flow_style))
    if not isinstance(node, yaml.MappingNode) or model is None:
        return
    flow = in_flow or bool(node.flow_style)
    names = tuple(key.value for key, _ in node.value)
    for key, value in node.value:
        if key.value not in model.model_fields:
            continue
        yield Place((*path, key.value), key, value, model, key.value, text, names, flow)
        inner = submodel(model.model_fields[key.value].annotation)
        yield from walk(value, inner, text, (*path, key.value), in_flow=flow)


def unknown(place: Place, chance: random.Random) -> Mutation | None:
    word = "".join(chance.choice("qxzjk") for _ in range(9))
    if not place.starts_a_line:
        return None
    path = ".".join(map(str, (*place.path[:-1], word)))
    return Mutation("", place.before(f"{place.indent}{word}: 1"), place.line, path)


def misspelt(place: Place, chance: random.Random) -> Mutation | None:
    name = place.name
    if len(name) < 6 or name == "kind" or place.key.end_mark.index - place.key.start_mark.index != len(name):
        return None
    at_ = chance.randrange(2, len(name) - 1)
    wrong = chance.choice([name[:at_] + name[at_ + 1 :], name[:at_] + name[at_] + name[at_:], f"{name}s"])
    if wrong in place.model.model_fields or wrong in place.siblings:
        return None
    path = ".".join(map(str, (*place.path[:-1], wrong)))
    return Mutation("", place.with_key(wrong), place.line, path, meant=f"did you mean {place.dotted}?")


def wrong_type(place: Place, chance: random.Random) -> Mutation | None:
    kinds = arguments(place.info.annotation)
    if place.name in ("kind", "data", "sources") or Any in kinds or object in kinds:
        return None
    origins = {typing.get_origin(kind) or kind for kind in kinds}
    choices = []
    if not origins & {str, typing.Literal}:
        choices.append("many")
    if not origins & {int, float, typing.Literal}:
        choices.append("3")
    if not origins & {list, tuple, typing.Literal}:
        choices.append("[many, more]")
    if not origins & {bool, typing.Literal}:
        choices.append("true")
    if typing.Literal not in origins and submodel(place.info.annotation) is None and dict not in origins:
        choices.append("{zz: 1}")
    return Mutation("", place.with_value(chance.choice(choices)), place.line, place.dotted) if choices else None


def bounds(info: Any) -> Iterator[Any]:
    yield from info.metadata
    for kind in typing.get_args(info.annotation):
        if typing.get_origin(kind) is typing.Annotated:
            yield from typing.get_args(kind)[1:]


def out_of_range(place: Place, chance: random.Random) -> Mutation | None:
    beyond = []
    for bound in bounds(place.info):
        beyond += [bound.gt] if isinstance(bound, at.Gt) else []
        beyond += [bound.ge - 1] if isinstance(bound, at.Ge) else []
        beyond += [bound.lt] if isinstance(bound, at.Lt) else []
        beyond += [bound.le + 1] if isinstance(bound, at.Le) else []
    kinds = arguments(place.info.annotation)
    if not beyond or not {int, float} & set(kinds):
        return None
    value = chance.choice(beyond)
    return Mutation("", place.with_value(str(int(value) if int in kinds else float(value))), place.line, place.dotted)


def bad_choice(place: Place, chance: random.Random) -> Mutation | None:
    options = [
        option
        for kind in arguments(place.info.annotation)
        if typing.get_origin(kind) is typing.Literal
        for option in typing.get_args(kind)
        if isinstance(option, str) and len(option) > 3
    ]
    if not options or place.name == "kind" or not isinstance(place.value, yaml.ScalarNode):
        return None
    meant = chance.choice(options)
    wrong = meant[:-2] + meant[-1]
    if wrong in options:
        return None
    return Mutation("", place.with_value(wrong), place.line, place.dotted, meant=f"did you mean {meant!r}?")


def duplicate(place: Place, _: random.Random) -> Mutation | None:
    if not place.starts_a_line:
        return None
    return Mutation("", place.before(f"{place.indent}{place.name}: 1"), place.line + 1, place.dotted)


def null(place: Place, _: random.Random) -> Mutation | None:
    if type(None) in arguments(place.info.annotation) or place.name == "kind":
        return None
    return Mutation("", place.with_value("null"), place.line, place.dotted)


def empty(place: Place, _: random.Random) -> Mutation | None:
    if not any(isinstance(bound, at.MinLen) for bound in bounds(place.info)):
        return None
    written = '""' if str in arguments(place.info.annotation) else "[]"
    return Mutation("", place.with_value(written), place.line, place.dotted)


def bad_place(place: Place, chance: random.Random) -> Mutation | None:
    if place.name not in ("uri", "store", "out", "cache_folder", "folder", "artifact_location", "journal_folder"):
        return None
    choices = ["s3:/bucket/prefix", "S3//bucket", "s3://", '""', *(["s4://b/p"] * (place.name != "artifact_location"))]
    wrong = chance.choice(choices)
    return Mutation("", place.with_value(wrong), place.line, place.dotted)


def missing(place: Place, _: random.Random) -> Mutation | None:
    value_ends = place.value.end_mark.line
    if not place.starts_a_line or not place.info.is_required() or not isinstance(place.value, yaml.ScalarNode):
        return None
    if len(place.path) == 1 or place.name == "kind" or len(place.siblings) < 2 or value_ends != place.line - 1:
        return None
    if len(place.path) > 1 and not isinstance(place.path[-2], str):
        return None
    lines = place.text.splitlines(keepends=True)
    # The mapping that lacks it is where its own key was written.
    return Mutation("", "".join(lines[: place.line - 1] + lines[place.line :]), 0, place.dotted)


def bad_indentation(place: Place, chance: random.Random) -> Mutation | None:
    if not place.starts_a_line or place.siblings[0] == place.name:
        return None
    start = place.key.start_mark
    shift = " " if chance.random() < 0.5 or not place.indent else "\t"
    begin = start.index - start.column
    return Mutation("", f"{place.text[:begin]}{shift}{place.text[begin:]}", place.line, place.name, in_yaml=True)


def broken_value(place: Place, chance: random.Random) -> Mutation | None:
    if not place.starts_a_line or not isinstance(place.value, yaml.ScalarNode):
        return None
    written = chance.choice(['"open', "[1, 2", "{a: 1", "@value", "a: b", "*missing", "!!python/name:os.system x"])
    return Mutation("", place.with_value(written), place.line, place.name, in_yaml=True)


def as_list(place: Place, _: random.Random) -> Mutation | None:
    """A list whose items are of the wrong kind: the item is named by its position."""
    kinds = [kind for kind in arguments(place.info.annotation) if typing.get_origin(kind) is tuple]
    if len(kinds) != 1 or typing.get_args(kinds[0])[-1] is not Ellipsis or place.name in ("data", "models"):
        return None
    return Mutation("", place.with_value("[[]]"), place.line, f"{place.dotted}.0")


MISTAKES: tuple[Callable[[Place, random.Random], Mutation | None], ...] = (
    unknown, misspelt, wrong_type, out_of_range, bad_choice, duplicate, null, empty, bad_place, missing,
    bad_indentation, broken_value, as_list,
)  # fmt: skip


def mutations(files: dict[Path, type[BaseModel]], *, number: int, seed: int) -> list[tuple[Path, Mutation]]:
    """Make ``number`` different mistakes, as many of each kind as there are, in files of which the models are known."""
    chance = random.Random(seed)
    places: list[tuple[Path, Place]] = []
    for file, model in sorted(files.items()):
        text = file.read_text(encoding="utf-8")
        places += [(file, place) for place in walk(yaml.compose(text, Loader=yaml.SafeLoader), model, text)]
    made: dict[str, list[tuple[Path, Mutation]]] = {}
    for mistake in MISTAKES:
        chance.shuffle(places)
        seen: set[tuple[type[BaseModel], str]] = set()
        for again in (False, True):  # first each field once
            for file, place in places:
                if ((place.model, place.name) in seen) != again:
                    continue
                if (found := mistake(place, chance)) is not None:
                    seen.add((place.model, place.name))
                    name = f"{mistake.__name__}-{file.parent.name}-{file.stem}-{place.dotted}-{found.text[:0]}".rstrip(
                        "-"
                    )
                    made.setdefault(mistake.__name__, []).append((file, replace(found, name=name)))
    chosen: list[tuple[Path, Mutation]] = []
    names: set[str] = set()
    for turn in range(number):
        for each in made.values():
            if turn < len(each) and each[turn][1].name not in names and len(chosen) < number:
                names.add(each[turn][1].name)
                chosen.append(each[turn])
    return chosen
