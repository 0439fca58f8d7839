"""How the processes that ``torchrun`` has started find each other."""

from __future__ import annotations

import datetime
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from twinflow.errors import TwinflowError
from twinflow.training.processes import Processes

PATIENCE = datetime.timedelta(hours=1)  # of collectives: the others wait while one writes the pipeline


@contextmanager
def joined(*, cuda: bool) -> Iterator[Processes]:
    """This process's place. Under ``torchrun`` the group is made, and each process gets a GPU of its own."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield Processes.current()
        return
    if cuda:
        local_rank, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local_rank >= count:
            raise TwinflowError(
                f"process {local_rank} of this machine has no GPU, there are {count}: use --nproc-per-node {count}"
            )
        torch.cuda.set_device(local_rank)
    store, rank, world = next(dist.rendezvous("env://", timeout=PATIENCE))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=dist.PrefixStore(agreed_name(store, rank, world), store),
        rank=rank,
        world_size=world,
        timeout=PATIENCE,
    )
    yield Processes.current()
    dist.destroy_process_group()  # not after an error: it would wait for the others


def agreed_name(store: dist.Store, rank: int, world: int) -> str:
    """A name that these processes have in common, and that none before them had.

    ``torchrun`` keeps its store when it starts the processes of a run again, with the addresses of those that are dead:
    whoever is first would try to reach them. Nothing in it tells old from new but a number that was drawn just now. So
    each process shows one, the first answers to all that it sees, the old ones too, and goes on when all of its own
    time have confirmed.
    """
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"twinflow/here/{rank}", own)
        name = store.get(f"twinflow/answer/{own}").decode()
        store.set(f"twinflow/heard/{name}/{rank}", "")
        return name
    missing = set(range(1, world))
    limit = time.monotonic() + PATIENCE.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"twinflow/here/{other}"]):
                shown = store.get(f"twinflow/here/{other}").decode()
                store.set(f"twinflow/answer/{shown}", own)
        missing = {other for other in missing if not store.check([f"twinflow/heard/{own}/{other}"])}
        if missing and time.monotonic() > limit:
            raise TwinflowError(f"processes {sorted(missing)} have not come within {PATIENCE}")
        time.sleep(0.02 if missing else 0)
    return own
