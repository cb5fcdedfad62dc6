"""Find the sources that files, folders and prefixes stand for, and list what is not read with the reason."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cytoray import storage
from cytoray.corpus.config import SourceConfig
from cytoray.corpus.readers import detect
from cytoray.corpus.readers.opening import Folder, not_one_source, open_source
from cytoray.corpus.readers.problems import NOT_CELLS, explained
from cytoray.corpus.readers.unpacking import names_in_zip
from cytoray.errors import CorpusError

logger = logging.getLogger(__name__)
SHOWN_FILES = 3  # of those that are not read for one reason


@dataclass(frozen=True)
class NotRead:
    """A file below a prefix that is not read."""

    uri: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class FoundSources:
    """The sources to be read, each with an identity of its own, and the files that are not read."""

    sources: tuple[SourceConfig, ...]
    not_read: tuple[NotRead, ...]


def find_sources(sources: Sequence[SourceConfig], *, known: Mapping[str, str] | None = None) -> FoundSources:
    """Replace each prefix (or local folder) by the sources below it.

    Sources without a ``name`` of their own are named by the shortest end of their path that distinguishes them.
    ``known`` are identities by URI that a corpus has already: they stay, and no other source gets them. Raises
    CorpusError if nothing is found below a prefix, or two sources would have one identity.
    """
    found: list[SourceConfig] = []
    not_read: list[NotRead] = []
    named: list[bool] = []
    for source in sources:
        expanded = _expand(source)
        found += expanded.sources
        not_read += expanded.not_read
        named += [source.name is not None] * len(expanded.sources)
    called = _distinguish(found, named, known or {})
    for identity, count in Counter(source.identity for source in called).items():
        if count > 1:
            raise CorpusError(
                f"{count} sources are called {identity!r}, so their cells could not be distinguished.",
                remedy="Give each a `name`, or list the file once.",
            )
    return FoundSources(tuple(called), tuple(not_read))


def expand_sources(sources: Sequence[SourceConfig], *, known: Mapping[str, str] | None = None) -> list[SourceConfig]:
    """The sources of ``find_sources``; the files that are not read are logged."""
    found = find_sources(sources, known=known)
    log_not_read(found)
    return list(found.sources)


def log_not_read(found: FoundSources) -> None:
    """Log the files that are not read, a warning for each reason."""
    for line in not_read_lines(found.not_read):
        logger.warning("%s", line)


def find_one(source: SourceConfig) -> SourceConfig:
    """The one source that a file or folder stands for; CorpusError if there are several."""
    found = expand_sources([source])
    if len(found) > 1:
        raise CorpusError(
            f"{source.uri}: there are {len(found):,} sources of cells below this folder.",
            remedy=f"Name one of them, such as {found[0].uri}.",
            uri=source.uri,
        )
    return found[0]


def not_read_lines(files: Iterable[NotRead]) -> list[str]:
    """One line for each reason, with the first files it holds for and the remedy."""
    groups: dict[tuple[str, str], list[str]] = {}
    for file in files:
        groups.setdefault((file.reason, file.remedy), []).append(file.uri)
    lines = []
    for (reason, remedy), uris in groups.items():
        more = f" and {len(uris) - SHOWN_FILES:,} more" if len(uris) > SHOWN_FILES else ""
        lines.append(f"not read: {', '.join(uris[:SHOWN_FILES])}{more}: {reason}. {remedy}".rstrip())
    return lines


def _expand(source: SourceConfig) -> FoundSources:
    """The sources that one entry of a configuration stands for."""
    if not _is_prefix(source.uri):
        return FoundSources((source,), ())
    folder = Folder.listed(source.uri)
    survey = detect.survey(folder.objects)
    not_read = {key: NotRead(_uri(folder, key), *why) for key, why in survey.not_read.items()}
    sources = {}
    start = source.name or ""
    if start and not source.uri.endswith("/"):
        start += "/"
    for key in survey.sources:
        one = source.model_copy(update={"uri": _uri(folder, key), "name": start + key if key else source.name})
        error = _refusal(one, folder.objects[key]) if key in survey.unsure else None
        if error is None:
            sources[key] = one
        else:
            problem = error.problem.removeprefix(f"{one.uri}: ").rstrip(".")
            not_read[key] = NotRead(one.uri, problem, error.remedy)
    if not sources:
        raise CorpusError(
            f"{source.uri}: no file of cells below this prefix ({len(folder.objects):,} other files).",
            remedy=" ".join([f"Check the path. Known are {detect.KNOWN}.", *not_read_lines(not_read.values())]),
            uri=source.uri,
        )
    return FoundSources(tuple(sources.values()), tuple(not_read[key] for key in sorted(not_read)))


def _is_prefix(uri: str) -> bool:
    """Whether a URI ends in '/', or is a local folder that may hold several sources."""
    if uri.endswith("/") or storage.is_remote(uri):
        return uri.endswith("/")
    return not uri.endswith(detect.FOLDER_ENDINGS) and storage.local_path(uri).is_dir()


def _uri(folder: Folder, key: str) -> str:
    """The URI of a key below a folder, which may be an inner folder or, if empty, the folder itself."""
    if key in folder.objects:
        return folder.objects[key].uri
    return storage.join(folder.uri, key) if key else folder.uri


def _refusal(source: SourceConfig, info: storage.ObjectInfo) -> CorpusError | None:
    """Open a file whose name does not say whether it holds cells; return the error if it holds none.

    A damaged file is not skipped in this way: it stays a source, and is refused as one.
    """
    try:
        if source.uri.lower().endswith(".zip"):
            with explained(source.uri, "the zip file"):
                found = detect.survey(names_in_zip(info)).sources
            return None if len(found) == 1 else not_one_source(source.uri, found)
        with open_source(source):
            return None
    except CorpusError as error:
        return error if error.details.get("rule") == NOT_CELLS else None


def _distinguish(sources: list[SourceConfig], named: list[bool], known: Mapping[str, str]) -> list[SourceConfig]:
    """Give a ``name`` to the sources whose default identity is another one's, unless the user named them."""
    counts = Counter(source.identity for source in sources)
    taken = {identity: uri for uri, identity in known.items()}
    result = []
    for source, has_name in zip(sources, named, strict=True):
        identity = source.identity
        if not has_name and source.uri in known:
            identity = known[source.uri]
        elif not has_name and (counts[identity] > 1 or taken.get(identity, source.uri) != source.uri):
            others = {other.uri for other in sources} | set(known)
            identity = _shortest_end(source, others - {source.uri}, set(taken))
        result.append(source if identity == source.identity else source.model_copy(update={"name": identity}))
    return result


def _shortest_end(source: SourceConfig, others: set[str], taken: set[str]) -> str:
    """Return the shortest end of a source's path, in whole names, that no other path has and that is not taken."""
    parts = source.uri.rstrip("/").split("/")
    for count in range(source.identity.count("/") + 1, len(parts)):
        end = "/".join(parts[-count:])
        if end not in taken and not any(other.rstrip("/").endswith(f"/{end}") for other in others):
            return end
    return source.identity
