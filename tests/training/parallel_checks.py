"""``python -m training.parallel_checks RANK WORLD FOLDER CHECK…``: one of the processes of test_parallel.py."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Generator, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

from together import take_part
from twinflow.errors import TwinflowError
from twinflow.recipes.sections import Optimizer
from twinflow.training import Trainer, checkpoint
from twinflow.training.checkpoint import CheckpointFolder, Snapshot
from twinflow.training.networks import Trained
from twinflow.training.optim import Optimizers
from twinflow.training.processes import Processes
from twinflow.training.run_folder import RunFolder
from twinflow.training.sharded_checkpoint import ShardedCheckpoints, named_slices
from twinflow.training.shards import as_cut, local, sharded_parameters, slice_of

from .parallel_runs import BF16, FAMILY, ON_SLICES, STEPS, Recording, built, outcome, recipe, several
from .test_families import Noises, opened


def check_equal(folder: Path, name: str, variant: str, parallel: dict[str, Any], **sections: Any) -> None:
    """Train, and leave what came out for the test to compare."""
    run = several(folder / f"{name}_run", variant, parallel, **sections)
    with CommDebugMode() as gathering:
        found = outcome(run)
    losses: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(losses, found["losses"])
    found["losses"] = [losses[i % len(losses)][i // len(losses)] for i in range(len(losses) * STEPS)]
    found["held"] = sum(local(p).numel() for p in run.pipe.network.parameters())
    found["averaged"] = sum(t.numel() for t in run.averages.drawn.state_dict()[0].values())
    with CommDebugMode() as averaging:
        run.averages.update()
    found["sent"] = gathering.get_total_counts(), averaging.get_total_counts()
    if dist.get_rank() == 0:
        torch.save(found, folder / f"{name}.pt")


def check_alike(folder: Path, name: str, parallel: dict[str, Any]) -> None:
    """bf16 weights, rounded by chance in each process: those that hold the same hold the same bits."""
    run = several(folder / f"{name}_run", "full", parallel, train={"steps": 2, "batch": 2}, **BF16)
    snapshot = run.state.snapshot()
    tensors = {f"{g}/{n}": t for g, group in snapshot.tensors.items() for n, t in group.items()}
    assert all(
        t.dtype == torch.bfloat16 for n, t in tensors.items() if n.startswith(("weights/", "average/"))
    )
    cut = sharded_parameters(run.pipe.network)
    for name, start in opened(FAMILY, run.recipe).network.named_parameters():
        weight = snapshot.tensors["weights"].get(name)
        if weight is not None and weight.numel() > 64:
            assert not torch.equal(weight, slice_of(start, cut[name]) if name in cut else start), (
                "it has moved"
            )
    own = {
        n: t.reshape(-1).view(torch.uint8).numpy().tobytes() for n, t in tensors.items() if "random_" not in n
    }
    layout = run.layout
    place = layout.mesh.get_local_rank("shard") if layout.sharded else 0  # of the slices
    held: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(held, (place, own))
    count = layout.mesh["shard"].size() if layout.sharded else 1
    assert sorted(other for other, _ in held) == sorted([*range(count)] * (len(held) // count))
    for other, parts in held:
        assert (parts == own) == (other == place)


def save(writer: ShardedCheckpoints, snapshot: Snapshot, parameters: dict[str, DTensor]) -> None:
    writer.save(2, snapshot, parameters)
    writer.finish()


def check_two_disks(folder: Path) -> None:
    """An output that each process has for itself is refused: before the first step, when they would go on from
    different checkpoints, and before a checkpoint is given its name of which the first sees a part alone."""
    kept, checkpoint.PATIENCE = checkpoint.PATIENCE, 0.0
    rank, disk = dist.get_rank(), folder / "disks" / f"disk_{dist.get_rank()}"
    settings = recipe(disk, "full", parallel={"mode": "shard"})
    place = Processes.current()
    with pytest.raises(TwinflowError, match="process 1 does not see .* disk that all machines share"):
        RunFolder(settings).check_shared(None, place, sharded=True)
    assert not any(disk.glob("*"))
    found = None if rank else folder / "step_00000002"
    with pytest.raises(
        TwinflowError, match="go on from step_00000002, and process 1 from the start: put output"
    ):
        RunFolder(settings).check_shared(found, place, sharded=False)
    RunFolder(settings).check_shared(None, place, sharded=False)

    network = nn.Linear(4, 4)
    fully_shard(network, mesh=init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("shard",)))
    cut = sharded_parameters(network)
    for background in (False, True):
        saved = CheckpointFolder(disk / "checkpoints", keep=1)
        saved.path.mkdir(parents=True, exist_ok=True)
        if rank:
            saved.begin(2, needed=0)  # which on one disk the first does for all
        snapshot = Snapshot(tensors={"weights": {n: local(p) for n, p in cut.items()}}, state={})
        writer = ShardedCheckpoints(saved, place, background=background)
        with pytest.raises(TwinflowError, match=r"process 1 has written, .* is not there .* machines share"):
            save(writer, snapshot, cut)
        assert saved.latest() is None
    checkpoint.PATIENCE = kept


def check_saved(
    folder: Path, name: str, steps: int, background: bool, keep: int = 9, **sections: Any
) -> None:
    """Train to step ``steps`` in the run ``name``, on from its last checkpoint if it has one."""
    several(
        folder / name,
        "full",
        {"mode": "shard"},
        train={"steps": steps, "batch": 2},
        checkpoint={"every": 2, "keep": keep, "background": background},
        **sections,
    )


def check_bf16(folder: Path, mode: str) -> None:
    """Half precision, with accumulation, pictures of which each process draws a part, and data that is encoded on the
    way; in the end, these pictures beside those that each process draws by itself."""
    run = several(
        folder / f"bf16_{mode}",
        "full",
        {"mode": mode},
        train={"steps": 2, "batch": 2, "accumulate": 2, "precision": "bf16"},
        preview={"every": 2, "prompts": ["red", "blue", "green"], "nfe": [1, 2]},
        data={"kind": "shapeworld", "cache": False},
    )
    assert run.previewer is not None
    drawn = [run.previewer.draw(run.pipe.field, processes) for processes in (run.processes, None)]
    torch.save(drawn, folder / f"bf16_{mode}_{dist.get_rank()}.pt")


def check_slices(folder: Path) -> None:
    """Optimisers on slices of odd sizes, some of them empty, beside the same on whole parameters, with equal
    gradients."""
    found: dict[str, Any] = {}
    for name, in_backward in itertools.product(ON_SLICES, (False, True)):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 1), nn.Linear(1, 3), nn.Conv2d(3, 4, 2))
        twin = copy.deepcopy(network)
        mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("shard",))
        fully_shard(network, mesh=mesh)
        settings = Optimizer(name=name, weight_decay=0.1, clip=None, in_backward=in_backward)
        cut = Trained.of(network, settings, seed=5)
        whole = Optimizers(dict(twin.named_parameters()), settings.model_copy(update={"in_backward": False}))
        for step in range(4):
            cut.optimizers.begin(lr=0.1 / (step + 1))
            whole.begin(lr=0.1 / (step + 1))
            for parameter, other in zip(network.parameters(), twin.parameters(), strict=True):
                generator = Generator().manual_seed(step)
                other.grad = torch.randn(other.shape, generator=generator) * 10.0 ** (step % 3)
                parameter.grad = as_cut(slice_of(other.grad, parameter), parameter)
                if cut.optimizers.in_backward is not None:  # as FSDP2 does when it has added gradients up
                    for hook in parameter._post_accumulate_grad_hooks.values():
                        hook(parameter)
            if cut.optimizers.in_backward is None:
                cut.gradients()
                cut.update()
            else:
                cut.optimizers.in_backward.finish()
            whole.step()
        slices = {n: p.full_tensor().detach() for n, p in network.named_parameters()}
        found[f"{name} {in_backward}"] = (slices, {n: p.detach() for n, p in twin.named_parameters()})
    if dist.get_rank() == 0:
        torch.save(found, folder / "slices.pt")


def check_back(folder: Path) -> None:
    """Go on with what a single process has saved: first leave what is restored, whole; then train on."""
    settings = recipe(folder / "moved", "full", parallel={"mode": "shard"}, train={"steps": 9, "batch": 2})
    run = Trainer(settings, opened(FAMILY, settings), Noises(FAMILY), objective=built(Recording, settings))
    run._prepare()
    snapshot = run.state.snapshot()
    slices = named_slices(snapshot, sharded_parameters(run.pipe.network), rank=dist.get_rank())
    whole = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in slices.items()}
    if dist.get_rank() == 0:
        torch.save((run.state.step, whole), folder / "back.pt")
    several(folder / "moved", "full", {"mode": "shard"}, train={"steps": 9, "batch": 2})


CHECKS: dict[str, Any] = {
    "replicate": lambda folder: check_equal(folder, "replicate", "full", {"mode": "replicate"}),
    "shard": lambda folder: check_equal(folder, "shard", "full", {"mode": "shard"}),
    "kept": lambda folder: check_equal(
        folder, "kept", "full", {"mode": "shard", "reshard_after_forward": False, "cpu_offload": True}
    ),
    "frozen": lambda folder: check_equal(folder, "frozen", "frozen", {"mode": "shard"}),
    "image_free": lambda folder: check_equal(folder, "image_free", "image_free", {"mode": "shard"}),
    "lora": lambda folder: check_equal(folder, "lora", "lora", {"mode": "shard"}),
    "in_backward": lambda folder: check_equal(folder, "in_backward", "in_backward", {"mode": "shard"}),
    "on_host": lambda folder: check_equal(
        folder, "on_host", "full", {"mode": "shard"}, ema={"on_host": True}
    ),
    "image_free_whole": lambda folder: check_equal(
        folder, "image_free_whole", "image_free", {"mode": "replicate"}
    ),
    "lora_whole": lambda folder: check_equal(folder, "lora_whole", "lora", {"mode": "auto"}),
    "in_backward_whole": lambda folder: check_equal(
        folder, "in_backward_whole", "in_backward", {"mode": "replicate"}
    ),
    "slices": check_slices,
    "machines": lambda folder: check_equal(folder, "machines", "full", {"mode": "hybrid"}),
    "alike": lambda folder: check_alike(folder, "alike", {"mode": "replicate"}),
    "alike_hybrid": lambda folder: check_alike(folder, "alike_hybrid", {"mode": "hybrid", "shard_size": 2}),
    "two_disks": check_two_disks,
    "straight": lambda folder: check_saved(folder, "saved", 6, False),
    "background": lambda folder: check_saved(folder, "background", 6, True),
    "bf16_shard": lambda folder: check_bf16(folder, "shard"),
    "bf16_replicate": lambda folder: check_bf16(folder, "replicate"),
    "back": check_back,
    "four": lambda folder: check_equal(folder, "four", "full", {"mode": "shard"}),
    "four_whole": lambda folder: check_equal(folder, "four_whole", "full", {"mode": "replicate"}),
    "few_bits": lambda folder: check_saved(folder, "few_bits", 4, True, keep=1, **BF16),
    "few_bits_first": lambda folder: check_saved(folder, "few_bits_cut", 2, False, keep=1, **BF16),
    "few_bits_second": lambda folder: check_saved(folder, "few_bits_cut", 4, False, keep=1, **BF16),
    "first": lambda folder: check_saved(folder, "cut", 2, False),
    "second": lambda folder: check_saved(folder, "cut", 6, False),
}

if __name__ == "__main__":
    take_part(lambda folder, name: CHECKS[name](folder))
