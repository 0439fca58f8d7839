"""Runs of a comparison at the same time: each in a process of its own, which leaves its outcome's file."""

from __future__ import annotations

import heapq
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import NoReturn

import torch
from rich.console import Console

from twinflow.errors import TwinflowError
from twinflow.lab.outcome import Outcome
from twinflow.lab.settings import Lab
from twinflow.lab.trials import Interrupted, Trial, Trials
from twinflow.report.text import score
from twinflow.training.interrupt import Interruption, this_command

LOG = "log.txt"  # what a run prints
STOPPED = 75  # exit status of a run that was stopped and saved


@dataclass
class _Group:
    """Trials after which something is to be done."""

    left: int
    then: Callable[[], None] | None


@dataclass(order=True)
class _Waiting:
    priority: int
    number: int  # first come, first served
    trial: Trial = field(compare=False)
    group: _Group = field(compare=False)


@dataclass(frozen=True)
class _Running:
    process: BaseProcess
    waiting: _Waiting  # what it was in line as
    slot: int  # 0 to jobs - 1, which its GPU follows from


class Jobs:
    """At most ``jobs`` runs of ``lab`` at a time, ``total`` in all. Threads are divided among them, and GPUs go round.

    A fresh process each: memory that is measured is that of one run, and what one leaves in a process (compiled code,
    caching allocators) reaches no other.
    """

    def __init__(self, lab: Lab, jobs: int, *, total: int, console: Console) -> None:
        self.lab, self.jobs, self.total, self.console = lab, jobs, total, console
        self._context = _context()
        self._numbers = count()
        self._waiting: list[_Waiting] = []
        self._slots = list(range(jobs))
        self._running: dict[int, _Running] = {}  # by the sentinel of the process
        self._done = 0

    def __enter__(self) -> Jobs:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._stop()

    def add(self, *trials: Trial, priority: int = 0, then: Callable[[], None] | None = None) -> None:
        """Put ``trials`` in line, the lowest ``priority`` first. ``then`` is called when all of these are done."""
        group = _Group(left=len(trials), then=then)
        for trial in trials:
            heapq.heappush(self._waiting, _Waiting(priority, next(self._numbers), trial, group))

    def run(self) -> None:
        """Until nothing is in line. :class:`Interrupted` if the user stops it, :class:`TwinflowError` if one fails."""
        with Interruption() as interruption:
            while self._waiting or self._running:
                while self._waiting and self._slots and not interruption.requested:
                    self._start(heapq.heappop(self._waiting))
                ended = wait(list(self._running), timeout=0.5)  # a signal is seen after that at the latest
                if interruption.requested:
                    self._interrupt()
                for sentinel in ended:
                    assert isinstance(sentinel, int)
                    self._ended(self._running.pop(sentinel))

    def _start(self, waiting: _Waiting) -> None:
        if waiting.trial.file.is_file():
            self._finish(waiting)
            return
        slot = self._slots.pop(0)
        process = self._context.Process(target=_make, args=(self.lab, waiting.trial, self.jobs, slot))
        process.start()
        self._running[process.sentinel] = _Running(process, waiting, slot)

    def _ended(self, ended: _Running) -> None:
        ended.process.join()
        self._slots.append(ended.slot)
        status, trial = ended.process.exitcode, ended.waiting.trial
        if status == STOPPED:
            self._interrupt()
        if status or not trial.file.is_file():
            log = trial.folder / LOG
            lines = log.read_text().splitlines() if log.is_file() else []
            raise TwinflowError(
                f"the run {trial.name} failed (exit status {status}): {lines[-1] if lines else 'it left no word'}\n"
                f"All that it said is in {log}. The same command makes what is missing"
            )
        self._finish(ended.waiting)

    def _interrupt(self) -> NoReturn:
        self.console.print(
            f"interrupted: {self._done} runs are done; the others save what they have\ngo on: {this_command()}",
            markup=False,
            soft_wrap=True,
        )
        raise Interrupted

    def _finish(self, waiting: _Waiting) -> None:
        self._done += 1
        outcome = Outcome.load(waiting.trial.file)
        row = outcome.row(self.lab.evaluation.nfe[0])
        told = f"{score(row.overall)} at {row.nfe} NFE" if row is not None else outcome.status
        self.console.print(f"{self._done}/{self.total} {waiting.trial.name}: {told}")
        waiting.group.left -= 1
        if waiting.group.left == 0 and waiting.group.then is not None:
            waiting.group.then()

    def _stop(self) -> None:
        """Ask what still runs to save itself and end."""
        for running in self._running.values():
            running.process.terminate()
        for running in self._running.values():
            running.process.join()
        self._running = {}


def _make(lab: Lab, trial: Trial, jobs: int, slot: int) -> None:
    """One run, in its own process. A terminal's Ctrl-C doesn't reach it: the comparison stops it, once."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    torch.set_num_threads(max(1, _cores() // jobs))
    if torch.cuda.is_available():
        torch.cuda.set_device(slot % torch.cuda.device_count())
    trial.folder.mkdir(parents=True, exist_ok=True)
    with (trial.folder / LOG).open("a") as log:
        try:
            Trials(lab, console=Console(file=log), jobs=jobs).outcome(trial)
        except Interrupted:
            sys.exit(STOPPED)
        except TwinflowError as error:
            print(error, file=log)
            sys.exit(1)
        except Exception:  # where this process's standard error leads to is not the comparison's to say
            traceback.print_exc(file=log)
            sys.exit(1)


def _context() -> ForkServerContext | SpawnContext:
    """How processes start: on a CPU as copies of one that has imported everything and done nothing else.

    With CUDA's build of torch the imports alone keep a copy from using a GPU.
    """
    if torch.cuda.is_available() or "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
