"""Ctrl-C and SIGTERM end a run at the next step boundary, so that it can be saved."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

PASSED_ON = 5.0  # seconds within which another Ctrl-C is the same one, by way of torchrun


class Interruption:
    """While entered, the first signal sets :attr:`requested`; a second Ctrl-C stops at once, as usual.

    Under ``torchrun`` a terminal's Ctrl-C comes twice, from the terminal and from ``torchrun``, and so does a SIGTERM
    that a cluster sends to all processes: the second one would end the run before it is saved. ``torchrun`` itself
    kills what has not ended in time.
    """

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # python handles signals there alone
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested, self._since = True, time.monotonic()
            if not _under_torchrun():
                self._restore()
        elif number == signal.SIGINT and time.monotonic() - self._since >= PASSED_ON:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}


def this_command() -> str:
    """The command line of this process, to be typed again; of those that ``torchrun`` has started, one for all.

    Without ``--resume``, which would begin once more where this process did.
    """
    program, *given = sys.argv
    pairs = zip(["", *given], given, strict=False)  # each word with the one before it
    arguments = [word for former, word in pairs if former != "--resume" and not word.startswith("--resume")]
    if Path(program).name == "__main__.py":
        words = ["-m", Path(program).parent.name, *arguments]
    elif program.endswith(".py"):
        words = [program, *arguments]
    else:
        return shlex.join([Path(program).name, *arguments])
    if not _under_torchrun():
        return shlex.join(["python", *words])
    all_of_them, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if all_of_them == here:
        return shlex.join(["torchrun", "--nproc-per-node", str(here), *words])
    # Where the machines meet is not known here.
    return f"torchrun --nnodes {all_of_them // here} --nproc-per-node {here} … {shlex.join(words)}"


def _under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ
