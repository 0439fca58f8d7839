"""``python -m training.parallel_checks RANK WORLD FOLDER CHECK…``: one of the processes of test_parallel.py."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

from families import FAMILIES
from together import take_part
from twinflow.errors import TwinflowError
from twinflow.objectives import Step, TwinFlow
from twinflow.recipes.sections import Optimizer
from twinflow.training import Trainer, checkpoint
from twinflow.training.checkpoint import CheckpointFolder, Snapshot
from twinflow.training.networks import Trained
from twinflow.training.optim import Optimizers
from twinflow.training.processes import Processes
from twinflow.training.randomness import seed_all
from twinflow.training.run_folder import RunFolder
from twinflow.training.sharded_checkpoint import ShardedCheckpoints, named_slices
from twinflow.training.shards import as_cut, local, sharded_parameters, slice_of

from .test_families import NO_PROMPT, Noises, opened
from .tiny import tiny_recipe

FAMILY = FAMILIES["sd3"]
STEPS, LR, EPS = 4, 1e-2, 1e-2
ON_SLICES: tuple[Any, ...] = ("adamw", "radam", "adafactor", "adamw8bit", "adamw4bit")
FEW_BITS = {"name": "adamw8bit", "lr": LR, "eps": EPS}
# As recipes/models/qwen_image_full.yaml: bf16 weights and averages, rounded by chance, and moments in eight bits.
BF16: dict[str, Any] = {"optimizer": FEW_BITS, "model": {"path": "tiny", "dtype": "bf16"}}
NO_CLIP = {"lr": LR, "eps": EPS, "clip": None}
# Variants of the recipe: what is trained, and on what.
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "frozen": {"objective": {"name": "twinflow", "guidance": 2.0, "teacher": "frozen"}},
    "image_free": {"objective": {"name": "twinflow", "guidance": 0.3, "teacher": "ema", "image_free": True}},
    "lora": {"model": {"path": "tiny", "train": "lora"}},
    "no_clip": {"optimizer": NO_CLIP},
    "in_backward": {"optimizer": NO_CLIP | {"in_backward": True}},
}


def recipe(output: Path, variant: str, *, parallel: dict[str, Any], **sections: Any) -> Any:
    raw: dict[str, Any] = {
        "objective": {"name": "twinflow", "guidance": 0.3, "teacher": "ema"},
        # A large eps: the update is then a smooth function of the gradient, and rounding stays rounding.
        "optimizer": {"lr": LR, "eps": EPS, "clip": 0.5},
        "train": {"steps": STEPS, "batch": 2},
        "checkpoint": {"every": 0},
        "log": {"every": 1, "tensorboard": False},
        "unconditional_prompt": NO_PROMPT,
        "caption_dropout": 0.0,
        "parallel": parallel,
    }
    return tiny_recipe(output, **(raw | VARIANTS[variant] | sections))


class AsProcesses(TwinFlow):
    """In one process, does with successive micro-batches what each of several processes would."""

    def play(self, world: int, seed: int) -> AsProcesses:
        self.players: list[Generator] = [seed_all(seed, rank) for rank in range(world)]
        self.turn, self.recorded = 0, []
        return self

    def step(self, *arguments: Any, **named: Any) -> Step:
        named["generator"] = self.players[self.turn % len(self.players)]
        self.turn += 1
        result = super().step(*arguments, **named)
        self.recorded.append(float(result.loss.detach()))
        return result


class Recording(TwinFlow):
    def step(self, *arguments: Any, **named: Any) -> Step:
        result = super().step(*arguments, **named)
        self.__dict__.setdefault("recorded", []).append(float(result.loss.detach()))
        return result


def built(kind: type, settings: Any) -> Any:
    return kind(**{key: value for key, value in settings.objective.items() if key != "name"})


def outcome(run: Trainer) -> dict[str, Any]:
    """Weights, average and gradient norms of a run, whole and plain."""
    cut = sharded_parameters(run.pipe.network)

    def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: as_cut(local(t), cut[name]).full_tensor().detach() if name in cut else t.detach().clone()
            for name, t in tensors.items()
        }

    weights = {name: p for name, p in run.pipe.network.named_parameters() if p.requires_grad}
    lines = (run.folder.path / "metrics.jsonl").read_text().splitlines() if run.processes.is_main else []
    return {
        "weights": whole(weights),
        "average": whole(run.averages.drawn.state_dict()[0]),
        "norms": [json.loads(line)["gradient_norm"] for line in lines],
        "losses": run.objective.recorded,
    }


def one_process(folder: Path, variant: str, world: int) -> dict[str, Any]:
    """The oracle: the same rows, roles and random numbers, added up in one process."""
    settings = recipe(folder, variant, parallel={}, train={"steps": STEPS, "batch": 2, "accumulate": world})
    objective = built(AsProcesses, settings).play(world, settings.train.seed)
    run = Trainer(settings, opened(FAMILY, settings), Noises(FAMILY), objective=objective)
    run.run()
    return outcome(run)


def several(folder: Path, variant: str, parallel: dict[str, Any], **sections: Any) -> Trainer:
    settings = recipe(folder, variant, parallel=parallel, **sections)
    run = Trainer(settings, opened(FAMILY, settings), Noises(FAMILY), objective=built(Recording, settings))
    run.run()
    return run


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
