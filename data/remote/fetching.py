"""One shard, from its origin through a WebDataset pipeline into a file, checked on the way.

webdataset itself is silent about loss: a pipe cut between two members gave 50 samples and no error, one cut inside a
header 217 (measured with 1.0.2). So the stream that its pipeline reads checks each 64 KiB against the shard's sums
before the pipeline, or the disk, sees a byte of it; the samples are compared with the index block by block; and at
the end length and sha256 are. What a connection drops is asked for again from where it stopped.
"""

import hashlib
import io
import os
import threading
from collections.abc import Iterator
from typing import Any

from data.errors import UserError
from data.npy_header import npy_header
from data.remote.origin import Incoming, Origin
from data.remote.patience import Damaged, Patience, Stopped
from data.shards import ShardEntry
from data.sums import CHUNK, Sums

HANDED = 1 << 18  # bytes checked, written and handed on at once


class Checked(io.RawIOBase):
    """A shard's bytes, each chunk compared with its sum before anybody gets it; a lost connection is taken up again.

    `into` is a file that takes what was checked; what it holds already is checked and used instead of asking again.
    """

    def __init__(self, origin: Origin, entry: ShardEntry, sums: Sums, patience: Patience, into: int | None = None,
                 stop: threading.Event | None = None):  # fmt: skip
        self._origin, self._entry, self._sums, self._patience = origin, entry, sums, patience
        self._into, self._stop = into, stop
        self._incoming: Incoming | None = None
        self._raw = bytearray()  # came in, not yet a whole chunk
        self._good = memoryview(b"")  # checked, not yet handed on
        self._at = 0  # bytes checked
        self._sha256 = hashlib.sha256()
        self._kept = _whole_chunks(os.fstat(into).st_size, entry.file_size) if into is not None else 0
        self.failure: Exception | None = None
        """Why reading ended early, as it was before it passed through webdataset, which rewrites what errors say."""
        self.fetched = 0
        """Bytes that came over the network."""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts, wanted = [], size if size >= 0 else self._entry.file_size
        while wanted and (self._good or self._more()):
            taken = self._good[:wanted]
            self._good = self._good[len(taken) :]
            wanted -= len(taken)
            parts.append(bytes(taken))
        return b"".join(parts)

    def finish(self) -> None:
        """Read what the pipeline left (a tar ends in zeros) and compare the whole.

        Raises:
            Damaged: it is another file than the one that was written.
        """
        while self._refill():
            pass
        if self._sha256.hexdigest() != self._entry.sha256:
            raise Damaged(f"{self._what}: its sha256 is not the index's")

    def close(self) -> None:
        if self._incoming is not None:
            self._incoming.close()
            self._incoming = None
        super().close()

    @property
    def _what(self) -> str:
        return f"{self._entry.url} from {self._origin.name}"

    def _more(self) -> bool:
        try:
            return self._refill()
        except Exception as error:
            self.failure = type(error)(*error.args)
            raise

    def _refill(self) -> bool:
        """Check the next bytes; False where the shard is at its end."""
        if self._stop is not None and self._stop.is_set():
            raise Stopped(self._what)
        if self._at < self._kept and self._from_disk():
            return True
        if self._at == self._entry.file_size:
            return False
        good = self._patience.insist(self._what, self._from_origin, self._stop)
        if self._into is not None:
            _write(self._into, good, self._at)
        self._take(good)
        return True

    def _take(self, good: bytes) -> None:
        self._sha256.update(good)
        self._at += len(good)
        self._good = memoryview(good)

    def _from_disk(self) -> bool:
        assert self._into is not None
        data = os.pread(self._into, HANDED, self._at)[: self._kept - self._at]
        if self._sums.wrong(self._at, data) is None and data:
            self._take(data)
            return True
        self._kept = self._at  # a crash left other bytes: from here on they come anew
        os.ftruncate(self._into, self._at)
        return False

    def _from_origin(self, attempt: int) -> bytes:
        size = self._entry.file_size
        if attempt > 1:
            self._drop()
        if self._incoming is None:
            self._incoming = self._origin.open(self._entry.url, self._at)
        try:
            if self._incoming.size not in (None, size):
                raise Damaged(f"{self._what} is {self._incoming.size:,} bytes long, but was written with {size:,}")
            least = min(CHUNK, size - self._at)
            while len(self._raw) < least:
                piece = self._incoming.read()
                if not piece:
                    there = self._at + len(self._raw)
                    raise Damaged(f"{self._what} ends after {there:,} of {size:,} bytes")
                self.fetched += len(piece)
                self._raw += piece
            if self._at + len(self._raw) >= size and (self._at + len(self._raw) > size or self._incoming.read()):
                raise Damaged(f"{self._what} is longer than the {size:,} bytes it was written with")
            whole = size - self._at if self._at + len(self._raw) == size else len(self._raw) // CHUNK * CHUNK
            good = bytes(self._raw[:whole])
            wrong = self._sums.wrong(self._at, good)
            if wrong is not None:
                raise Damaged(
                    f"{self._what} is not the shard that was written: it differs from byte {wrong:,} on. Copy it "
                    "again from where the dataset was built"
                )
            del self._raw[:whole]
        except BaseException:
            self._drop()
            raise
        return good

    def _drop(self) -> None:
        """Let go of the connection and of what it brought that wasn't checked yet."""
        if self._incoming is not None:
            self._incoming.close()
        self._incoming = None
        self._raw.clear()


def samples(stream: Checked, entry: ShardEntry, where: str) -> Iterator[dict[str, Any]]:
    """The blocks of a shard through webdataset's own stages; each is held against the index.

    Raises:
        Damaged: a block is missing, is one too many, or holds another number of tokens or documents.
    """
    from webdataset.pipeline import DataPipeline
    from webdataset.tariterators import group_by_keys, tar_file_expander

    what = f"{entry.url} from {where}"
    opened = [{"url": entry.url, "stream": stream}]
    count = 0
    for sample in DataPipeline(lambda: iter(opened), tar_file_expander, group_by_keys):
        if count == len(entry.blocks):
            raise Damaged(f"{what}: it holds more blocks than the {count} that the index names")
        block = entry.blocks[count]
        held = {name: _count(sample, name) for name in ("tok.npy", "doc.npy")}
        if held != {"tok.npy": block.tokens, "doc.npy": block.documents}:
            raise Damaged(
                f"{what}: its block {count} holds {held['tok.npy']:,} tokens of {held['doc.npy']:,} documents, and the "
                f"index names {block.tokens:,} of {block.documents:,}"
            )
        count += 1
        yield sample
    if count != len(entry.blocks):
        raise Damaged(f"{what}: {count} of its {len(entry.blocks)} blocks came")


def fetch(origin: Origin, entry: ShardEntry, sums: Sums, patience: Patience, into: int | None = None,
          stop: threading.Event | None = None) -> int:  # fmt: skip
    """Pull a whole shard into the file `into` (a descriptor; None: only check it); returns bytes over the network.

    Raises:
        Damaged: it isn't the shard that was written.
        Unreachable: it can't be had for now.
        UserError: it isn't there, or access is denied.
        Stopped: `stop` was set.
    """
    with Checked(origin, entry, sums, patience, into, stop) as stream:
        try:
            for _ in samples(stream, entry, origin.name):
                pass  # each is compared with the index
        except Exception as error:
            if stream.failure is not None:
                raise stream.failure from None
            if isinstance(error, UserError):
                raise
            raise Damaged(f"{entry.url} from {origin.name} is no WebDataset shard: {error}") from None
        stream.finish()
        return stream.fetched


def _whole_chunks(held: int, size: int) -> int:
    """How much of a part that holds so many bytes can be used."""
    return size if held == size else held // CHUNK * CHUNK


def _count(sample: dict[str, Any], name: str) -> int:
    """Elements of an array, from its header."""
    if name not in sample:
        return 0
    return npy_header(sample[name])[1][0]


def _write(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
