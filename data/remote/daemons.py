"""Threads for calls that may hang on a network: none of them keeps the process from ending.

`ThreadPoolExecutor` joins its threads when the interpreter ends, so one request to a server that hangs held up a
command that had failed, or was done, for its whole timeout (60 s), and each retry after it.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Daemons:
    """Runs calls in at most so many daemon threads, which start as they are needed and live until `close`."""

    def __init__(self, most: int, name: str):
        self._most, self._name = most, name
        self._calls: queue.SimpleQueue[tuple[Future, Callable[..., Any], tuple] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def submit(self, call: Callable[..., Any], *args: Any) -> Future:
        """Have `call(*args)` made by the next free thread. For one thread that submits."""
        future: Future = Future()
        self._calls.put((future, call, args))
        if len(self._threads) < self._most:
            name = f"{self._name}-{len(self._threads)}"
            self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
            self._threads[-1].start()
        return future

    def close(self) -> None:
        """Let each thread end after the call that it is at; nobody is waited for."""
        for _ in self._threads:
            self._calls.put(None)

    def _work(self) -> None:
        while (taken := self._calls.get()) is not None:
            future, call, args = taken
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call(*args))
            except BaseException as error:  # raised in the thread that asks for the result
                future.set_exception(error)
