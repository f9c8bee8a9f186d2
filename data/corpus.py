"""Documents, streamed from where they are: the standard library, files, folders, JSON lines, earlier datasets.

An id is the source's name and a path relative to it, never an absolute path, so that a dataset's splits, order
and bytes are the same on every machine. Reading stays in one process, at some 45 MB/s (small files and gzipped
JSON lines alike): enough for four workers that clean and hash at 13 MB/s each. Tokenizing, the longer stage,
reads what those left and isn't bound by it.
"""

import gzip
import io
import json
import re
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data.errors import UserError
from data.recipe import Source

_INSTALLED = {"site-packages", "dist-packages"}
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")
_JSON_LINES = ("**/*.jsonl", "**/*.jsonl.gz")


@dataclass(frozen=True)
class Document:
    """One document as it was read."""

    id: str
    source: str
    """Name of its source."""
    text: str | None
    """None: it is not text (NUL bytes, or bytes that don't decode)."""
    completion: str | None = None
    """The second field of a prompt_completion line."""
    size: int = 0
    """Bytes on disk, for a document that is not text."""

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of its text, or its size where it has none."""
        return self.size if self.text is None else len(self.text.encode()) + len((self.completion or "").encode())


@dataclass(frozen=True)
class InputFile:
    """One file of a source."""

    id: str
    """Source name and relative path."""
    path: Path


def documents(sources: Sequence[Source]) -> Iterator[Document]:
    """Every document of every source, in the order of the sources and then of the ids.

    Raises:
        UserError: a path that isn't there, a folder where nothing matches, a bad JSON line (naming file and line),
            a text file that isn't text.
    """
    for source in sources:
        if source.kind == "dataset":
            yield from _from_dataset(source)
            continue
        for file in input_files(source):
            if source.kind == "jsonl":
                yield from _json_lines(source, file)
            elif source.kind == "text":
                yield from _cut_file(source, file)
            else:
                text, size = _read_text(file.path, source.kind == "stdlib")
                yield Document(file.id, source.label, text, size=size)


def input_files(source: Source) -> list[InputFile]:
    """The files of a source in the order of their ids.

    Raises:
        UserError: the path isn't there or nothing matches.
    """
    if source.kind == "dataset":
        from data.dataset import load_dataset

        index = load_dataset(_path(source)).index(source.split)
        return [InputFile(f"{source.label}/{shard.url}", index.folder / shard.url) for shard in index.shards]
    if source.kind == "stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        found = (path for path in root.rglob("*.py") if not _INSTALLED.intersection(path.parts))
        return _named(source, root, found)
    path = _path(source)
    if source.kind == "text" or (source.kind == "jsonl" and path.is_file()):
        if not path.is_file():
            what = "is a folder; use kind: folder" if path.is_dir() else "doesn't exist"
            raise UserError(f"source {source.label}: {path} {what}")
        return [InputFile(source.label, path)]
    if not path.is_dir():
        what = "is a file; use kind: text or jsonl" if path.exists() else "doesn't exist"
        raise UserError(f"source {source.label}: {path} {what}")
    globs = source.glob or (_JSON_LINES if source.kind == "jsonl" else ("**/*",))
    files = _named(source, path, {found for glob in globs for found in path.glob(glob)})
    if not files:
        raise UserError(f"source {source.label}: no file in {path} matches {', '.join(globs)}")
    return files


def fingerprint(sources: Sequence[Source]) -> dict[str, dict[str, int | str]]:
    """For each source by name: its files, their bytes and a digest (xxh3_128) of their ids and content."""
    import xxhash

    said: dict[str, dict[str, int | str]] = {}
    for source in sources:
        total = xxhash.xxh3_128()
        files = input_files(source)
        size = 0
        for file in files:
            digest, length = _digest(file.path)
            total.update(f"{file.id}\0{digest}\n".encode())
            size += length
        name = f"{source.label}:{source.split}" if source.kind == "dataset" else source.label
        said[name] = {"files": len(files), "bytes": size, "xxh3": total.hexdigest()}
    return said


def _digest(path: Path) -> tuple[str, int]:
    import xxhash

    digest = xxhash.xxh3_128()
    size = 0
    with _reading(path), path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
            size += len(piece)
    return digest.hexdigest(), size


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Around what reads an input file: an error there is the input's, not the dataset's being written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def _path(source: Source) -> Path:
    if source.path is None:
        raise UserError(f"source {source.label} needs a path")
    return source.path.expanduser()


def _named(source: Source, root: Path, paths: Iterable[Path]) -> list[InputFile]:
    relative = {path.relative_to(root).as_posix(): path for path in paths if path.is_file()}
    visible = {name: path for name, path in relative.items() if not any(p.startswith(".") for p in name.split("/"))}
    return [InputFile(f"{source.label}/{name}", path) for name, path in sorted(visible.items())]


def _read_text(path: Path, python: bool) -> tuple[str | None, int]:
    """The file's text (none if it isn't text) and its bytes; Python source in the encoding that it declares."""
    with _reading(path):
        content = path.read_bytes()
    if b"\0" in content:
        return None, len(content)
    try:
        return content.decode("utf-8-sig"), len(content)
    except UnicodeDecodeError:
        if not python:
            return None, len(content)
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        return content.decode(encoding), len(content)
    except (SyntaxError, UnicodeDecodeError):
        return None, len(content)


def _cut_file(source: Source, file: InputFile) -> Iterator[Document]:
    text, _ = _read_text(file.path, python=False)
    if text is None:
        raise UserError(f"source {source.label}: {file.path} is not a text file (NUL bytes, or not UTF-8)")
    if not source.document_characters:
        yield Document(file.id, source.label, text)
        return
    start = number = 0
    while start < len(text):
        stop = _end_of_part(text, start + source.document_characters, source.document_characters)
        yield Document(f"{file.id}#{number:06d}", source.label, text[start:stop])
        start, number = stop, number + 1


def _end_of_part(text: str, wanted: int, slack: int) -> int:
    """The end of the first blank line from `wanted` on; within `slack` there is none: of a line; else the text's."""
    if blank := _BLANK_LINE.search(text, wanted, wanted + slack):
        return blank.end()
    return text.find("\n", wanted) + 1 or len(text)


def _json_lines(source: Source, file: InputFile) -> Iterator[Document]:
    wanted = [field for field in (source.text_field, source.completion_field) if field is not None]
    number = 0
    with gzip.open(file.path, "rb") if file.path.suffix == ".gz" else file.path.open("rb") as lines:
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    texts = _fields(line, wanted, f"{file.path}:{number}")
                    text, completion = texts[0], texts[1] if len(texts) > 1 else None
                    whole = all(_is_text(held) for held in texts)
                    id_ = f"{file.id}:{number:09d}"
                    yield Document(id_, source.label, text if whole else None, completion, len(line))
        except (EOFError, gzip.BadGzipFile, OSError) as error:
            raise UserError(f"cannot read {file.path} after line {number}: {error}") from None


def _fields(line: bytes, wanted: list[str], where: str) -> list[str]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not a JSON line: {error}") from None
    if not isinstance(record, dict):
        raise UserError(f"{where} should hold a JSON object, not {type(record).__name__}")
    for field in wanted:
        if not isinstance(record.get(field), str):
            seen = f"is {type(record[field]).__name__}, not a string" if field in record else "is not there"
            raise UserError(f"{where}: field {field!r} {seen}. Its fields: {', '.join(map(str, record))}")
    return [record[field] for field in wanted]


def _is_text(text: str) -> bool:
    """JSON can escape NUL and halves of surrogate pairs, which no text holds."""
    return "\0" not in text and (text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text))


def _from_dataset(source: Source) -> Iterator[Document]:
    from data.dataset import load_dataset

    dataset = load_dataset(_path(source))
    if dataset.kind != "text":
        raise UserError(f"source {source.label}: {dataset.folder} holds examples; only a dataset of text is a source")
    tokenizer = dataset.tokenizer()
    if tokenizer.losses:
        raise UserError(
            f"source {source.label}: the tokenizer of {dataset.folder} {', '.join(tokenizer.losses)}, so its documents "
            "can't be read back as they were. Use what that dataset was built from."
        )
    for row, tokens in dataset.documents(source.split):
        yield Document(row.id, row.source, tokenizer.decode_bytes(tokens).decode())
