"""What a source held when a dataset was built from it, so that a later build can tell whether it still does.

Files of this machine are digested (xxh3, 3.5 GB/s: the disk is the limit), so dates don't matter. Of remote files the
server's word is taken: size and ETag, digest or date, a request a file; one that has none of these is read.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from data.corpus.files import InputFile, input_files, looked_up, raw, reading
from data.origin import About
from data.source import Source

_PIECE = 1 << 22


def fingerprint(sources: Sequence[Source]) -> dict[str, dict[str, int | str]]:
    """For each source by name: its files, their bytes, and a digest (xxh3_128) of ids and content or versions.

    Raises:
        UserError: a file that isn't there or can't be read.
    """
    import xxhash

    said: dict[str, dict[str, int | str]] = {}
    for source in sources:
        total = xxhash.xxh3_128()
        files = input_files(source)
        size = 0
        for file, (mark, length) in zip(files, _marks(source, files), strict=True):
            total.update(f"{file.id}\0{mark}\n".encode())
            size += length
        name = f"{source.label}:{source.split}" if source.kind == "dataset" else source.label
        said[name] = {"files": len(files), "bytes": size, "xxh3": total.hexdigest()}
    return said


def stamps(sources: Sequence[Source]) -> dict[str, tuple[int, ...]]:
    """Size, time and place on disk of each file of this machine, by id: equal ones weren't written to in between."""
    found = {}
    for source in sources:
        for file in input_files(source):
            if not file.remote:
                with reading(source, file):
                    about = Path(file.path).stat()
                found[f"{source.label}:{file.id}"] = (about.st_size, about.st_mtime_ns, about.st_ino)
    return found


def _marks(source: Source, files: Sequence[InputFile]) -> Iterator[tuple[str, int]]:
    """(what tells its content, bytes) of each file."""
    said = iter(looked_up(source, [file for file in files if file.remote]))
    for file in files:
        yield (_said(next(said)) if file.remote else None) or _digest(source, file)


def _said(about: About) -> tuple[str, int] | None:
    return (f"{about.size} {about.version}", about.size) if about.size is not None and about.version else None


def _digest(source: Source, file: InputFile) -> tuple[str, int]:
    import xxhash

    digest = xxhash.xxh3_128()
    size = 0
    with reading(source, file), raw(source, file) as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
            size += len(piece)
    return digest.hexdigest(), size
