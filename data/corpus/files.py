"""The files of a source: found, named and opened, on this machine or behind URLs.

An id is the source's name and a path relative to it, never an absolute path or a host, so that a dataset's splits,
order and bytes are the same on every machine and at every mirror. A pattern's ids are relative to the last folder
before its first wildcard.
"""

import glob
import re
import sysconfig
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from data.corpus.compression import BROKEN, SUFFIXES, decompressed
from data.corpus.remote import Stream, look
from data.credentials import Secrets
from data.errors import UserError
from data.origin import About, is_remote
from data.patience import Unreachable
from data.source import WILD, Source

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_INSTALLED = {"site-packages", "dist-packages"}
_USUAL = {
    "jsonl": (".jsonl", ".ndjson"),
    "json": (".json",),
    "squad": (".json",),
    "csv": (".csv",),
    "tsv": (".tsv",),
    "html": (".html", ".htm"),
    "warc": (".warc",),
    "webdataset": (".tar",),
}
_AT_ONCE = 16  # requests for sizes


@dataclass(frozen=True)
class InputFile:
    """One file of a source."""

    id: str
    """Source name and relative path."""
    path: str
    """A path of this machine, or a URL with its credentials."""

    @property
    def name(self) -> str:
        """Its last part, by whose suffix it is read."""
        return (urlsplit(self.path).path if is_remote(self.path) else self.path).rpartition("/")[2]

    @property
    def remote(self) -> bool:
        """Whether it lies behind a URL."""
        return is_remote(self.path)

    @property
    def shown(self) -> str:
        """How messages call it."""
        return self.path


def input_files(source: Source) -> list[InputFile]:
    """The files of a source in the order of their ids.

    Raises:
        UserError: the path isn't there, nothing matches, a link leads nowhere, or a name is not UTF-8.
    """
    if source.kind == "dataset":
        from data.dataset import load_dataset

        index = load_dataset(source.local).index(source.split)
        return [InputFile(f"{source.label}/{shard.url}", str(index.folder / shard.url)) for shard in index.shards]
    if source.kind == "stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        found = (path for path in root.rglob("*.py") if not _INSTALLED.intersection(path.parts) and path.is_file())
        return _in_folder(source, root, found)
    if source.kind == "lines":
        for path in source.files.values():
            if not is_remote(path) and not Path(path).expanduser().is_file():
                raise UserError(f"source {source.label}: {path} is not a file")
        return [
            InputFile(f"{source.label}/{name}", path if is_remote(path) else str(Path(path).expanduser()))
            for name, path in source.files.items()
        ]
    try:
        files = _remote_files(source) if source.remote else _local_files(source)
    except OSError as error:
        raise UserError(f"source {source.label}: {error.strerror or error}") from None
    if not files:
        said = f" matches {', '.join(_globs(source))}" if not source.several else ""
        raise UserError(f"source {source.label}: no file in {source.path!s}{said or ' is there'}")
    return files


def looked_up(source: Source, files: Iterable[InputFile]) -> list[About]:
    """The size and version of remote files, in their order.

    Raises:
        UserError: one isn't there, or its server doesn't answer.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            return list(pool.map(lambda file: look(file.path, source.patience), files))
        except Unreachable as error:
            raise UserError(f"source {source.label}: cannot read {error}") from error
        except OSError as error:
            raise UserError(f"source {source.label}: cannot read {error}") from None


@contextmanager
def unpacked(source: Source, file: InputFile) -> Iterator[BufferedReader]:
    """What the file holds, decompressed. Any error while reading becomes one that names the file.

    Raises:
        UserError: cut, damaged, unreadable, short, changed meanwhile.
    """
    with reading(source, file), closing(raw(source, file)) as stream:
        yield decompressed(stream, file.name)


@contextmanager
def reading(source: Source, file: InputFile) -> Iterator[None]:
    """Around what reads an input file: an error there is the input's, not the dataset's being written."""
    try:
        yield
    except Unreachable as error:
        raise UserError(f"source {source.label}: cannot read {error}") from error
    except BROKEN as error:
        said = getattr(error, "strerror", None) or str(error)
        raise UserError(f"source {source.label}: cannot read {file.shown}: {said}") from None


def raw(source: Source, file: InputFile) -> Any:
    """The file's bytes as they lie there, as a stream that can seek. Raises OSError."""
    return Stream(file.path, source.patience) if file.remote else Path(file.path).open("rb", buffering=0)


def _local_files(source: Source) -> list[InputFile]:
    path = source.local
    if source.several:
        fixed = _fixed(str(path))
        return _named(source, {found.removeprefix(fixed).lstrip("/"): found for found in _expanded(source, str(path))})
    if path.is_file():
        if source.kind == "folder":
            raise UserError(f"source {source.label}: {path} is a file; use kind: text, jsonl, csv ...")
        return [InputFile(source.label, str(path))]
    if not path.is_dir():
        raise UserError(f"source {source.label}: {path} doesn't exist")
    if source.kind == "text":
        raise UserError(f"source {source.label}: {path} is a folder; use kind: folder")
    return _in_folder(source, path, {found for pattern in _globs(source) for found in path.glob(pattern)})


def _expanded(source: Source, pattern: str) -> Iterator[str]:
    for plain in _braces(source, pattern):
        if Path(plain).is_file():
            yield plain
        elif WILD.search(plain):
            found = glob.iglob(plain, recursive=True)  # noqa: PTH207 (the pattern may be absolute)
            yield from (path for path in found if _to_read(Path(path)))
        else:
            raise UserError(f"source {source.label}: {plain} doesn't exist")


def _remote_files(source: Source) -> list[InputFile]:
    url = str(source.path)
    if url.startswith(("http://", "https://")):
        if source.kind == "folder" and not source.several:
            raise UserError(
                f"source {source.label}: {url}: a web server lists no folder. Name its files with braces, "
                "such as https://host/page-{000..127}.txt"
            )
        if "*" in url.partition("?")[0]:
            raise UserError(
                f"source {source.label}: {url}: a web server lists no folder, so `*` finds nothing there. "
                "Name the files with braces, such as part-{000..127}.jsonl.zst"
            )
        if not source.several:
            return [InputFile(source.label, url)]
        named = {plain.removeprefix(_fixed(url)).partition("?")[0].lstrip("/"): plain for plain in _braces(source, url)}
        return _named(source, named)
    secrets = Secrets(url)

    def ask(_: int) -> list[InputFile]:
        try:
            return _stored_files(source, url, secrets)
        except UserError:
            raise
        except (ImportError, ValueError) as error:
            raise UserError(
                f"source {source.label}: {url} can't be opened: {secrets.hide(error)}. Take a URL that fsspec knows, "
                "or install the package that it names"
            ) from None
        except Exception as error:  # each store's library has exceptions of its own
            raise OSError(f"{type(error).__name__}: {secrets.hide(error)}") from None

    return source.patience.insist(f"the list of {url}", ask)


def _stored_files(source: Source, url: str, secrets: Secrets) -> list[InputFile]:
    """Of an fsspec URL. Paths that come back lack the host where the protocol has one, so URLs are put together."""
    import fsspec

    files, path = fsspec.core.url_to_fs(secrets.text, use_listings_cache=False)
    if source.several:
        url = _fixed(url)
        root = fsspec.core.url_to_fs(_fixed(secrets.text))[1].rstrip("/")
        patterns = [fsspec.core.url_to_fs(plain)[1] for plain in _braces(source, secrets.text)]
    elif files.isfile(path):
        if source.kind == "folder":
            raise UserError(f"source {source.label}: {url} is a file; use kind: text, jsonl, csv ...")
        return [InputFile(source.label, url)]
    elif not files.isdir(path):
        raise UserError(f"source {source.label}: {url} doesn't exist")
    elif source.kind == "text":
        raise UserError(f"source {source.label}: {url} is a folder; use kind: folder")
    else:
        root = path.rstrip("/")
        patterns = [f"{root}/{pattern}" for pattern in _globs(source)]
    found = {
        name.removeprefix(root).lstrip("/")
        for pattern in patterns
        for name, about in files.glob(pattern, detail=True).items()
        if about["type"] == "file"
    }
    return _named(source, {name: f"{url.rstrip('/')}/{name}" for name in found})


def _fixed(pattern: str) -> str:
    """The last folder before the first wildcard."""
    return WILD.split(pattern)[0].rpartition("/")[0]


def _braces(source: Source, pattern: str) -> list[str]:
    """`{a,b}` and `{000..127}` written out; `${NAME}` stays."""
    from braceexpand import UnbalancedBracesError, braceexpand  # pyright: ignore[reportAttributeAccessIssue]

    try:
        return [each.replace("\0", "${").replace("\1", "}") for each in braceexpand(_VARIABLE.sub("\0\\1\1", pattern))]
    except UnbalancedBracesError as error:
        raise UserError(f"source {source.label}: {pattern}: {error}") from None


def _globs(source: Source) -> tuple[str, ...]:
    """What is looked for in a folder."""
    if source.glob:
        return source.glob
    if source.kind == "parquet":
        return ("**/*.parquet",)
    usual = _USUAL.get(source.kind, ())
    return tuple(f"**/*{suffix}{packed}" for suffix in usual for packed in SUFFIXES) or ("**/*",)


def _in_folder(source: Source, root: Path, paths: Iterable[Path]) -> list[InputFile]:
    return _named(source, {path.relative_to(root).as_posix(): str(path) for path in paths if _to_read(path)})


def _to_read(path: Path) -> bool:
    """A file, also one that isn't there behind its link: `_named` says so, as leaving it out would be quiet."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def _named(source: Source, paths: dict[str, str]) -> list[InputFile]:
    visible = {name: path for name, path in paths.items() if not any(p.startswith(".") for p in name.split("/"))}
    found = [InputFile(f"{source.label}/{name}", path) for name, path in sorted(visible.items())]
    for file in found:
        if not file.remote and not Path(file.path).exists():
            raise UserError(
                f"source {source.label}: {file.shown} is a link to a file that isn't there: fetch it, or leave it out"
            )
        try:
            file.id.encode()
        except UnicodeEncodeError:
            raise UserError(f"source {source.label}: the name of {file.path!r} is not UTF-8: rename it") from None
    return found
