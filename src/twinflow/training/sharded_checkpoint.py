"""Checkpoints of sharded runs: every process writes its slices, and any number of processes reads them back.

By ``torch.distributed.checkpoint``, in safetensors files whose headers say where in its tensor a slice lies: nothing is
pickled. Beside the folder of slices lies what the checkpoints of other runs have too: ``state.json`` and the random
numbers' states of each process.
"""

from __future__ import annotations

import warnings
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor

from twinflow.errors import TwinflowError
from twinflow.training.checkpoint import CheckpointFolder, Snapshot, appears, read_checkpoint
from twinflow.training.processes import Processes
from twinflow.training.shards import as_cut, local, slice_of

SLICES = "slices"  # the folder, in that of the checkpoint
_OF_EACH = "random_"  # states that every process has of its own, which the snapshot has gathered
_RANK = "|rank "  # in the name of what can't be cut anew


class ShardedCheckpoints:
    """Writes the snapshots of all processes into one folder; in the background, if wanted.

    In the background the snapshot is copied to the host at once, and written while the training goes on: a checkpoint
    appears under its name when all of it is there, and the next one waits for it.
    """

    def __init__(self, folder: CheckpointFolder, processes: Processes, *, background: bool) -> None:
        self.folder, self.processes, self.background = folder, processes, background
        # A group of its own: the thread that writes must not come between the calls of the training.
        self._group = dist.new_group(backend="gloo") if background else None
        self._pending: tuple[int, Path, Snapshot, Any] | None = None

    def save(self, step: int, snapshot: Snapshot, parameters: Mapping[str, DTensor]) -> Path:
        """Where the checkpoint is, or will be after :meth:`finish`."""
        self.finish()
        slices = named_slices(snapshot, parameters, rank=self.processes.rank)
        snapshot.tensors = {key: group for key, group in snapshot.tensors.items() if key.startswith(_OF_EACH)}
        snapshot.state["processes"] = self.processes.world_size
        path = self.folder.hidden(step)
        if self.processes.is_main:
            self.folder.begin(step, needed=snapshot.nbytes)
        self.processes.barrier()
        with _said(path):
            writer = SliceWriter(str(path / SLICES), save_distributed=True)
            if self.background:
                # On a GPU the host's copy is another one anyway.
                slices = {name: t.clone() if t.device.type == "cpu" else t for name, t in slices.items()}
                future = dcp.async_save(slices, storage_writer=writer, process_group=self._group)
            else:
                dcp.save(slices, storage_writer=writer)
                future = None
        self._pending = (step, path, snapshot, future)
        if not self.background:
            self.finish()
        return self.folder.path / f"step_{step:08}"

    def finish(self, *, wait: bool = True) -> None:
        """Give the checkpoint that is being written its name, once it is complete. Without ``wait`` maybe not yet."""
        if self._pending is not None:
            step, path, snapshot, future = self._pending
            if future is not None:
                if not wait and not future.done():
                    return
                with _said(path):
                    future.result()
            if self.processes.is_main:  # all have written: the last thing that a save does is to hear of them
                self.folder.commit(step, snapshot)
            self._pending = None
        if wait:
            self.processes.barrier()


class SliceWriter(dcp.HuggingFaceStorageWriter):
    """A save is over for all when the first process sees the files of each: what it does not see would not be missed
    either, as it lists what belongs to a checkpoint."""

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        for rank, written in enumerate(results):
            for name in {str(one.storage_data.relative_path) for one in written}:
                if not appears(Path(self.path) / name):
                    raise TwinflowError(
                        f"what process {rank} has written, {name}, is not there for the first one: put output on a "
                        "disk that all machines share"
                    )
        super().finish(metadata, results)


def named_slices(snapshot: Snapshot, parameters: Mapping[str, DTensor], *, rank: int) -> dict[str, Tensor]:
    """All tensors of ``snapshot`` but those of single processes, as ``group/name``.

    What has the shape of a parameter's slice is a slice of such a tensor; numbers are the same everywhere. Anything
    else (moments in few bits) is written as it is, for the process of the same number.
    """
    named: dict[str, Tensor] = {}
    for group, tensors in snapshot.tensors.items():
        if group.startswith(_OF_EACH):
            continue
        for key, tensor in tensors.items():
            like, name = parameters.get(key.rpartition("|")[2]), f"{group}/{key}"
            if like is None or tensor.dim() == 0:
                named[name] = tensor
            elif tensor.shape == local(like).shape and tensor.dtype != torch.uint8:
                named[name] = as_cut(tensor.detach(), like)
            else:
                named[f"{name}{_RANK}{rank}"] = tensor
    return named


def read_slices(
    path: Path,
    snapshot: Snapshot,
    parameters: Mapping[str, DTensor],
    processes: Processes | None,
    *,
    groups: Container[str] | None = None,
) -> None:
    """Put the tensors of the checkpoint ``path`` that this process needs into ``snapshot``.

    Of ``parameters``, which are cut here, the slices; all of anything else. Without ``processes`` nothing that belongs
    to one of them. ``groups``: of those alone (``weights``, ``average``, states of the optimiser and so on).
    """
    written_by = int(snapshot.state["processes"])
    found: dict[str, Tensor] = {}
    with _said(path):
        reader = dcp.HuggingFaceStorageReader(str(path / SLICES))
        for name, about in reader.read_metadata().state_dict_metadata.items():
            shared, _, rank = name.partition(_RANK)
            if groups is not None and shared.partition("/")[0] not in groups:
                continue
            if rank and processes is None:
                continue
            if rank and processes is not None and written_by != processes.world_size:
                raise TwinflowError(
                    f"{path} was written by {written_by} processes, and there are {processes.world_size}: states of "
                    "this optimiser can't be cut anew. Use as many, or adamw"
                )
            if rank and processes is not None and int(rank) != processes.rank:
                continue
            like = parameters.get(shared.partition("/")[2].rpartition("|")[2])
            assert isinstance(about, TensorStorageMetadata), "safetensors files hold tensors alone"
            dtype = about.properties.dtype
            if not rank and like is not None and about.size == like.shape:
                found[name] = as_cut(torch.empty_like(local(like), dtype=dtype), like)
            else:
                found[name] = torch.empty(about.size, dtype=dtype)
        with _quiet():
            dcp.load(found, storage_reader=reader, no_dist=not dist.is_initialized())
    for name, tensor in found.items():
        group, _, key = name.partition(_RANK)[0].partition("/")
        snapshot.tensors.setdefault(group, {})[key] = local(tensor)


def read_whole(path: Path, *, groups: Container[str] | None = None) -> Snapshot:
    """A checkpoint, sharded or not, with whole tensors, in a single process; of ``groups`` of tensors alone, if given:
    an optimiser's states are most of a checkpoint."""
    snapshot = read_checkpoint(path, groups=groups)
    if (path / SLICES).is_dir():
        read_slices(path, snapshot, {}, None, groups=groups)
    return snapshot


def cut(snapshot: Snapshot, parameters: Mapping[str, DTensor]) -> None:
    """Keep of a snapshot with whole tensors what belongs to this process."""
    for tensors in snapshot.tensors.values():
        for key, tensor in tensors.items():
            like = parameters.get(key.rpartition("|")[2])
            if like is not None and tensor.shape == like.shape:
                tensors[key] = slice_of(tensor, like)


@contextmanager
def _said(path: Path) -> Iterator[None]:
    """DCP's own exception is no ``Exception``, and holds those of all processes."""
    try:
        yield
    except CheckpointException as error:
        causes = "; ".join(f"process {rank}: {failure[0]}" for rank, failure in error.failures.items())
        raise TwinflowError(f"{path}: {causes}. What was saved before is untouched") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the note that a single process loads what several have written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
