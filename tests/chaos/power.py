"""What a loss of power leaves of a folder: what was flushed, and of the rest whatever pleases the disk.

POSIX promises the bytes of a file after its fsync, and a name in a folder after the fsync of that folder, and nothing
else. Real file systems do better; a program that relies on it loses a checkpoint on the one that doesn't.
"""

import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.gate import Call


@dataclass
class Node:
    """A file or folder as it would be found on the disk."""

    folder: bool = False
    link: str | None = None
    data: bytes = b""
    names: dict[str, "Node"] = field(default_factory=dict)


class Platter:
    """Follows the calls in a folder, and can put it back to what would have survived."""

    def __init__(self, root: Path):
        """All that is in `root` has been flushed, except what the record and the metrics never flush."""
        self._root, self._nodes = root, dict[int, Node]()
        self._fsync_all(root)
        for path in root.rglob("*.jsonl"):
            text, saved = path.read_bytes(), b'{"event": "checkpoint"'
            end = text.find(b"\n", text.rfind(saved)) + 1 if saved in text else 0
            self._node(path).data = text[:end]

    def after(self, call: Call) -> None:
        """A call has been made."""
        if call.creates and os.path.lexists(call.path):
            self._nodes[call.path.lstat().st_ino] = _new(call.path)
        if call.name == "fsync" and call.path.exists():
            self._fsync(call.path)

    def lose_power(self, seed: int | None) -> None:
        """Rewrite the folder: None leaves only what was flushed, a seed leaves some of the rest, or half of it."""
        draw = None if seed is None else random.Random(seed)
        left = self._survivor(self._root, self._node(self._root), draw)
        for path in self._root.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        _write(self._root, left)

    def _node(self, path: Path) -> Node:
        return self._nodes.setdefault(path.lstat().st_ino, _new(path))

    def _fsync(self, path: Path) -> None:
        node = self._node(path)
        if node.folder:
            node.names = {inside.name: self._node(inside) for inside in path.iterdir()}
        elif node.link is None:
            node.data = path.read_bytes()

    def _fsync_all(self, path: Path) -> None:
        self._fsync(path)
        if path.is_dir() and not path.is_symlink():
            for inside in path.iterdir():
                self._fsync_all(inside)

    def _survivor(self, path: Path | None, node: Node, draw: random.Random | None) -> Node:
        """`path`: where it is at this moment; None: it is nowhere any more."""
        if node.link is not None:
            return node
        if not node.folder:
            return Node(data=node.data if path is None or draw is None else _torn(node.data, path.read_bytes(), draw))
        now = {} if path is None else {inside.name: self._node(inside) for inside in path.iterdir()}
        names = {}
        for name in sorted({*node.names, *now}):
            held = node.names.get(name)
            if name in now and (held is now[name] or (draw is not None and draw.random() < 0.5)):
                assert path is not None
                names[name] = self._survivor(path / name, now[name], draw)
            elif held is not None:
                names[name] = self._survivor(None, held, draw)
        return Node(folder=True, names=names)


def _new(path: Path) -> Node:
    link = str(path.readlink()) if path.is_symlink() else None
    return Node(folder=link is None and path.is_dir(), link=link)


def _torn(flushed: bytes, now: bytes, draw: random.Random) -> bytes:
    """A file whose newer bytes have reached the disk, or not, or in part, or as zeros."""
    if flushed == now:
        return now
    cut = draw.randint(min(len(flushed), len(now)), len(now))
    return draw.choice([flushed, now, now[:cut], now[:cut] + bytes(len(now) - cut)])


def _write(path: Path, node: Node) -> None:
    if node.link is not None:
        path.symlink_to(node.link)
    elif node.folder:
        path.mkdir(exist_ok=True)
        for name, inside in node.names.items():
            _write(path / name, inside)
    else:
        path.write_bytes(node.data)
