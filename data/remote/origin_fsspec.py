"""Files of anything that fsspec and its plug-ins open."""

import threading
from collections.abc import Callable
from typing import TypeVar

from data.errors import UserError
from data.remote.credentials import Secrets
from data.remote.origin import About
from data.remote.patience import Damaged, Patience, Unreachable

T = TypeVar("T")
_VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "generation", "LastModified", "last_modified", "mtime")


class Files:
    """Files of anything fsspec opens, in pieces of 8 MiB, each a request of its own."""

    PIECE = 1 << 23

    def __init__(self, url: str, patience: Patience):
        import fsspec

        self.name, self.ranges = url, True
        self._secrets, self._timeout_s = Secrets(url), patience.timeout_s
        try:
            self._files, self._base = fsspec.core.url_to_fs(self._secrets.text, use_listings_cache=False)
        except (ImportError, ValueError, OSError) as error:
            raise UserError(
                f"{url} can't be opened ({self._secrets.hide(error)}): take a URL that fsspec knows, such as "
                "file:///path, or install the package that it names"
            ) from None

    def open(self, file: str, start: int = 0) -> "_Pieces":
        return _Pieces(lambda at: self._cat(file, at, at + self.PIECE), start, self.PIECE)

    def read(self, file: str, start: int, stop: int) -> bytes:
        data = self._cat(file, start, stop)
        if len(data) != stop - start:
            raise Damaged(f"{file} from {self.name}: asked for bytes {start:,} to {stop:,}, {len(data):,} came")
        return data

    def about(self, file: str) -> About:
        said = self._ask(file, lambda path: self._files.info(path))
        if said.get("type") == "directory":
            raise UserError(f"{file} of {self.name} is a folder")
        return About(said.get("size"), next((str(said[name]) for name in _VERSIONS if said.get(name) is not None), ""))

    def _cat(self, file: str, start: int, stop: int) -> bytes:
        return self._ask(file, lambda path: self._files.cat_file(path, start=start, end=stop))

    def _ask(self, file: str, ask: Callable[[str], T]) -> T:
        path = self._base.replace("{file}", file) if "{file}" in self._base else f"{self._base.rstrip('/')}/{file}"
        try:
            return within(self._timeout_s, lambda: ask(path))
        except FileNotFoundError:
            raise UserError(f"{file} is missing from {self.name}") from None
        except PermissionError as error:
            raise UserError(f"{self.name} denies access to {file}: {self._secrets.hide(error)}") from None
        except Unreachable:
            raise
        except Exception as error:  # each plug-in raises what its own client does
            raise Unreachable(f"{type(error).__name__}: {self._secrets.hide(error)}") from None


class _Pieces:
    """A file read by consecutive ranges; the first that is short is the last."""

    def __init__(self, fetch: Callable[[int], bytes], start: int, piece: int):
        self.size: int | None = None
        self.version = ""
        self._fetch, self._at, self._piece = fetch, start, piece
        self._over = False

    def read(self) -> bytes:
        if self._over:
            return b""
        data = self._fetch(self._at)
        self._at += len(data)
        self._over = len(data) < self._piece
        return data

    def close(self) -> None:
        self._over = True


def within(seconds: float, call: Callable[[], T]) -> T:
    """The result of `call`; a plug-in that hangs has no timeout of ours to obey, so its thread is left behind.

    Raises:
        Unreachable: no answer in that time.
    """
    box: list[tuple[T | None, BaseException | None]] = []

    def run() -> None:
        try:
            box.append((call(), None))
        except BaseException as error:  # raised again below, in the thread that asked
            box.append((None, error))

    thread = threading.Thread(target=run, name="fetch", daemon=True)
    thread.start()
    thread.join(seconds)
    if not box:
        raise Unreachable(f"no answer in {seconds:g} s")
    result, error = box[0]
    if error is not None:
        raise error
    return result  # type: ignore[return-value]
