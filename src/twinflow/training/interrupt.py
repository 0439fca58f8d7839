"""Ctrl-C and SIGTERM end a run at the next step boundary, so that it can be saved."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any


class Interruption:
    """While entered, the first signal sets :attr:`requested`; a second Ctrl-C stops at once, as usual."""

    def __init__(self) -> None:
        self.requested = False
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # python handles signals there alone
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}


def this_command() -> str:
    """The command line of this process, to be typed again."""
    program, *arguments = sys.argv
    if Path(program).name == "__main__.py":
        return shlex.join(["python", "-m", Path(program).parent.name, *arguments])
    if program.endswith(".py"):
        return shlex.join(["python", program, *arguments])
    return shlex.join([Path(program).name, *arguments])
