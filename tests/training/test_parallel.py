"""Sharded and replicated runs of two and four processes: equal to one process, exactly resumable, in any number."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from together import run_on_machines, run_together
from twinflow.errors import TwinflowError
from twinflow.training.checkpoint import Snapshot
from twinflow.training.metrics import read_metrics
from twinflow.training.run_folder import RunFolder
from twinflow.training.sharded_checkpoint import read_whole

from .parallel_runs import BF16, ON_SLICES, STEPS, one_process, recipe, several

# Unit roundoff of fp32 is 6e-8. Sums of up to 2**9 terms in another order give gradients, losses and norms that differ
# by some roundoffs, at most sqrt(2**9) of them as a rule: 1.4e-6 of their size. The gradient is clipped to a norm of
# 0.5, and Adam with the large eps moves a weight by at most lr / eps = 1 times the gradient's error: 7e-7 a step.
RELATIVE = 22 * 6e-8
WEIGHTS = STEPS * 0.5 * RELATIVE

EQUAL = {  # checks of two processes, and the variant of one that they are compared with
    "replicate": "full",
    "shard": "full",
    "kept": "full",
    "on_host": "full",
    "frozen": "frozen",
    "image_free": "image_free",
    "image_free_whole": "image_free",
    "lora": "lora",
    "lora_whole": "lora",
}
IN_BACKWARD = ["in_backward", "in_backward_whole"]
TWO = [*EQUAL, *IN_BACKWARD, "slices", "alike", "two_disks"]
SAVED = [
    "straight",
    "background",
    "first",
    "second",
    "few_bits",
    "few_bits_first",
    "few_bits_second",
    "bf16_shard",
    "bf16_replicate",
]


def together(world: int, folder: Path, checks: list[str]) -> None:
    """Run ``checks`` in ``world`` processes."""
    run_together("training.parallel_checks", world=world, folder=folder, arguments=checks, seconds=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("parallel")
    together(2, place, TWO + SAVED)
    return place


def assert_equal(found: dict[str, Any], oracle: dict[str, Any], *, largest: float = 0.5) -> None:
    """``largest``: norm of a gradient, after the clip."""
    for group in ("weights", "average"):
        assert found[group].keys() == oracle[group].keys()
        for name, value in oracle[group].items():
            torch.testing.assert_close(
                found[group][name], value, rtol=0, atol=WEIGHTS * largest / 0.5, msg=name
            )
    assert len(found["norms"]) == STEPS
    assert found["norms"] == pytest.approx(oracle["norms"], rel=RELATIVE)
    assert found["losses"] == pytest.approx(oracle["losses"], rel=RELATIVE)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[tuple[str, int], dict[str, Any]] = {}

    def of(variant: str, world: int) -> dict[str, Any]:
        if (variant, world) not in made:
            made[variant, world] = one_process(tmp_path_factory.mktemp("one"), variant, world)
        return made[variant, world]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("name", EQUAL)
def test_two_processes_are_one(name: str, folder: Path, oracle: Any) -> None:
    """Losses, norms before the clip, weights and average; ``kept``: on the host, and not cut again in between;
    ``on_host``: its average; ``whole``: replicated."""
    expected = oracle(EQUAL[name], 2)
    assert_equal(torch.load(folder / f"{name}.pt"), expected)
    assert max(expected["norms"]) > 0.5 or EQUAL[name] == "lora", "the clip has an effect"


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_BACKWARD)
def test_updates_in_backward(name: str, folder: Path, oracle: Any) -> None:
    """A block is updated when its gradients have been added up; as after the backward, in one process."""
    expected = oracle("no_clip", 2)
    assert_equal(torch.load(folder / f"{name}.pt"), expected, largest=max(expected["norms"]))


@pytest.mark.slow
@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("name", ON_SLICES)
def test_optimisers_on_slices(name: str, in_backward: bool, folder: Path) -> None:
    """What works on elements gives the same bits; Adafactor's means are added up in another order, of at most 24
    elements in four steps."""
    slices, whole = torch.load(folder / "slices.pt")[f"{name} {in_backward}"]
    assert slices.keys() == whole.keys()
    for key, value in whole.items():
        if name == "adafactor":
            torch.testing.assert_close(slices[key], value, rtol=4 * 24 * 6e-8, atol=4 * 24 * 6e-8)
        else:
            assert torch.equal(slices[key], value), key


@pytest.mark.slow
def test_each_process_holds_its_share(folder: Path) -> None:
    """Of the average too, which is moved where it is: nothing is sent for it, as is to put it together."""
    cut, whole = (torch.load(folder / f"{name}.pt") for name in ("shard", "replicate"))
    assert cut["held"] * 2 == whole["held"]
    assert cut["averaged"] * 2 == whole["averaged"] == sum(t.numel() for t in whole["average"].values())
    assert whole["sent"] == (0, 0)
    assert cut["sent"][0] > 0
    for name in ("shard", "on_host", "lora"):
        assert torch.load(folder / f"{name}.pt")["sent"][1] == 0


@pytest.mark.slow
def test_half_precision(folder: Path) -> None:
    """Weights travel in bf16, and are used in bf16 by autocast where they do not: equal up to its rounding, 2**-8."""
    lines = [read_metrics(folder / f"bf16_{mode}" / "metrics.jsonl") for mode in ("shard", "replicate")]
    for key in ("loss", "gradient_norm"):
        assert lines[0][0][key] == pytest.approx(lines[1][0][key], rel=8 * 2**-8)
    drawn = [
        {p.name for p in (folder / f"bf16_{mode}" / "previews").iterdir()} for mode in ("shard", "replicate")
    ]
    assert drawn[0] == drawn[1] == {"step_00000002_nfe_001.png", "step_00000002_nfe_002.png"}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["shard", "replicate"])
def test_pictures_are_drawn_in_parts(mode: str, folder: Path) -> None:
    """Three pictures by two processes; both have all of them, up to the roundoff of other numbers of rows."""
    grids = [torch.load(folder / f"bf16_{mode}_{rank}.pt") for rank in range(2)]
    for parts, alone in grids:
        assert parts.keys() == alone.keys() == {1, 2}
        for nfe, grid in alone.items():
            assert grid.std() > 0.01
            torch.testing.assert_close(parts[nfe], grid, rtol=0, atol=1e-4)
            assert torch.equal(parts[nfe], grids[0][0][nfe])


@pytest.mark.slow
def test_moments_in_few_bits(folder: Path) -> None:
    """Blocks of moments are those of the slices: exactly resumed by as many processes, refused by another number.
    Weights and average are bf16, and rounded as the uninterrupted run rounds them."""
    assert_same(*(folder / name / "checkpoints" / "step_00000004" for name in ("few_bits", "few_bits_cut")))
    held = everything(read_whole(folder / "few_bits" / "checkpoints" / "step_00000004"))
    for group in ("weights/", "average/"):
        assert {t.dtype for name, t in held.items() if name.startswith(group)} == {torch.bfloat16}
    with pytest.raises(TwinflowError, match="written by 2 processes, and there are 1"):
        several(
            folder / "few_bits",
            "full",
            {"mode": "shard"},
            train={"steps": 5, "batch": 2},
            **BF16,
        )


@pytest.mark.slow
def test_only_the_last_checkpoint_is_kept(folder: Path) -> None:
    """With ``keep: 1``: written in the background, and by a resumed run."""
    for name in ("few_bits", "few_bits_cut"):
        found = {path.name for path in (folder / name / "checkpoints").iterdir()}
        assert found == {"latest", "step_00000004"}


@pytest.mark.slow
def test_half_copied_slices_are_refused(folder: Path) -> None:
    """As half of a plain checkpoint is: by name, before anything is loaded; without it, the one before is the last."""
    run = shutil.copytree(folder / "cut", folder / "half")
    settings = recipe(run, "full", parallel={"mode": "shard"}, train={"steps": 6, "batch": 2})
    latest = run / "checkpoints" / "step_00000006"
    first, second = sorted((latest / "slices").iterdir())
    os.truncate(second, second.stat().st_size // 2)
    with pytest.raises(TwinflowError, match=f"is half of a checkpoint: slices/{second.name} has"):
        RunFolder(settings).resume_from()
    second.unlink()
    with pytest.raises(TwinflowError, match=f"slices/{second.name} has 0 bytes of"):
        RunFolder(settings).resume_from(latest)
    assert first.exists()
    shutil.rmtree(latest)
    assert RunFolder(settings).resume_from() == latest.with_name("step_00000004")


@pytest.mark.slow
def test_four_processes_are_one(tmp_path: Path, oracle: Any) -> None:
    """Two agents of torchrun start them, as two machines would: in ``machines`` each has a copy of its own."""
    run_on_machines(
        "training.parallel_checks",
        machines=2,
        each=2,
        folder=tmp_path,
        arguments=["four", "machines", "four_whole", "alike_hybrid"],
        seconds=300,
    )
    for name, parts in (("four", 4), ("machines", 2), ("four_whole", 1)):
        found = torch.load(tmp_path / f"{name}.pt")
        assert_equal(found, oracle("full", 4))
        whole = sum(p.numel() for p in found["weights"].values())
        assert whole / parts <= found["held"] < whole / parts * 1.1
        assert whole / parts <= found["averaged"] < whole / parts * 1.1


def everything(snapshot: Snapshot) -> dict[str, Any]:
    state = {key: value for key, value in snapshot.state.items() if key != "seconds"}
    return {"state": state} | {
        f"{g}/{n}": t for g, group in snapshot.tensors.items() for n, t in group.items()
    }


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(one: Path, other: Path) -> None:
    first, second = everything(read_whole(one)), everything(read_whole(other))
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == second[key].dtype
            assert bits(value) == bits(second[key]), key
        else:
            assert value == second[key], key


@pytest.mark.slow
def test_a_resumed_run_is_the_same_run(folder: Path) -> None:
    """Bit for bit, also where checkpoints were written in the background."""
    straight = folder / "saved" / "checkpoints"
    assert_same(straight / "step_00000006", folder / "cut" / "checkpoints" / "step_00000006")
    for step in (2, 4, 6):
        assert_same(straight / f"step_{step:08}", folder / "background" / "checkpoints" / f"step_{step:08}")
    assert (folder / "background" / "checkpoints" / "latest").read_text().strip() == "step_00000006"
    assert not list(folder.glob("*/checkpoints/.*"))


def test_of_slices_those_that_are_asked_for_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export needs no state of the optimiser: hundreds of GiB of a model of 20 B."""
    path = tmp_path / "step_00000001"
    written = {f"{group}/w": torch.randn(3, 2) for group in ("weights", "average", "optimizer")}
    written["optimizer/exp_avg|w|rank 0"] = torch.zeros(4, dtype=torch.uint8)
    dcp.save(written, storage_writer=dcp.HuggingFaceStorageWriter(str(path / "slices")), no_dist=True)
    (path / "state.json").write_text(json.dumps({"format": 1, "processes": 2}))
    asked, load = set[str](), dcp.load
    monkeypatch.setattr(dcp, "load", lambda found, **options: (asked.update(found), load(found, **options)))
    tensors = read_whole(path, groups=("weights", "average")).tensors
    assert asked == {"weights/w", "average/w"}
    assert tensors.keys() == {"weights", "average"}
    assert all(torch.equal(tensors[group]["w"], written[f"{group}/w"]) for group in tensors)
    assert read_whole(path).tensors.keys() == {"weights", "average", "optimizer"}


@pytest.mark.slow
def test_two_to_one_to_two(folder: Path) -> None:
    """One process goes on with what two have saved, and two with what it has saved: nothing is changed in between."""
    run = shutil.copytree(folder / "saved", folder / "moved")
    saved = everything(read_whole(run / "checkpoints" / "step_00000006"))
    one = several(run, "full", {"mode": "shard"}, train={"steps": 6, "batch": 2})
    held = {f"{g}/{n}": t for g, group in one.state.snapshot().tensors.items() for n, t in group.items()}
    for key, value in held.items():
        if not key.startswith("random_"):
            assert torch.equal(value, saved[key]), key
    several(run, "full", {"mode": "shard"}, train={"steps": 8, "batch": 2})
    latest = run / "checkpoints" / "step_00000008"
    assert not (latest / "slices").exists(), "a single process writes plain files"
    together(2, folder, ["back"])
    step, restored = torch.load(folder / "back.pt")
    assert step == 8
    plain = everything(read_whole(latest))
    assert all(torch.equal(value, plain[key]) for key, value in restored.items())
    assert {key for key in plain if not key.startswith(("random_", "state"))} == restored.keys()
    assert read_whole(run / "checkpoints" / "step_00000009").state["order"]["rows"] == 6 * 4 + 2 * 2 + 4


# What is refused
