"""Signals as a terminal, torchrun and a cluster send them: once, twice, or by several ways at once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest

from twinflow.training.interrupt import Interruption, this_command


@pytest.fixture(autouse=True)
def ctrl_c_is_heard() -> Iterator[None]:
    """As in a terminal: what a shell starts in the background ignores it."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


def test_a_second_ctrl_c_stops_at_once() -> None:
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_what_torchrun_passes_on_is_no_second_signal(
    second: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal's Ctrl-C and a cluster's SIGTERM reach each process, and torchrun sends them another."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "here")
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with Interruption() as interruption:
        signal.raise_signal(second)
        signal.raise_signal(second)
        signal.raise_signal(second)
        assert interruption.requested
    assert {number: signal.getsignal(number) for number in former} == former


def test_a_later_ctrl_c_under_torchrun_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "here")
    monkeypatch.setattr("twinflow.training.interrupt.PASSED_ON", 0.0)
    with Interruption():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_command_starts_as_many_processes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", [os.sep + os.path.join("x", "twinflow", "__main__.py"), "train", "a b.yaml"]
    )
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert this_command() == "python -m twinflow train 'a b.yaml'"
    for name, value in {"TORCHELASTIC_RUN_ID": "here", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    assert this_command() == "torchrun --nproc-per-node 8 -m twinflow train 'a b.yaml'"
    monkeypatch.setattr(sys, "argv", ["train.py", "x"])
    assert this_command() == "torchrun --nproc-per-node 8 train.py x"
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert this_command() == "torchrun --nnodes 2 --nproc-per-node 8 … train.py x"


def test_the_command_goes_on_with_what_was_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once more from the checkpoint that the run began from, and not anew."""
    for words in (["--resume", "runs/a/checkpoints/step_00000008"], ["--resume=never"], ["--resume", "auto"]):
        monkeypatch.setattr(sys, "argv", ["twinflow", "train", *words, "recipe.yaml", "train.steps=9"])
        assert this_command() == "twinflow train recipe.yaml train.steps=9"
