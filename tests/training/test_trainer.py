"""What a run does to the weights, what it writes, and how it stops when something is wrong."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import twinflow
from twinflow.errors import TwinflowError
from twinflow.objectives import FlowMatching, Step, TwinFlow
from twinflow.objectives.objective import Field, Objective, RowLog
from twinflow.training.metrics import read_metrics
from twinflow.training.processes import Processes
from twinflow.training.step import AutocastField

from .tiny import COLORS, Colors, TinyPipeline, tiny_recipe
from .trained import train, weights

NO_DROPOUT = {"caption_dropout": 0.0}


class RowwiseFlowMatching(Objective):
    """Flow matching whose t and z are functions of the row, so that any split of a batch has the same draws."""

    def step(self, field: Field, x: Tensor, cond: Any, **_: Any) -> Step:
        rows = [FlowMatching().step(field, *self._row(x, cond, i)) for i in range(len(x))]
        loss = torch.stack([row.loss for row in rows]).mean()
        zeros = torch.zeros(len(x))
        log = RowLog(roles=["velocity"] * len(x), t=zeros, r=zeros, loss=zeros)
        return Step(loss=loss, losses={}, metrics={}, rows=log)

    @staticmethod
    def _row(x: Tensor, cond: Tensor, i: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(int(x[i].sum().item() * 1e6))
        return x[i : i + 1], cond[i : i + 1]


@pytest.mark.parametrize(("batch", "accumulate"), [(4, 3), (1, 12)])
def test_accumulation_equals_the_large_batch(tmp_path: Path, batch: int, accumulate: int) -> None:
    double = TinyPipeline(), TinyPipeline()
    for pipe in double:
        pipe.network.double()
    plain = {"name": "flow_matching"}
    whole = {"train": {"steps": 3, "batch": 12}, "objective": plain, **NO_DROPOUT}
    split = {**whole, "train": {"steps": 3, "batch": batch, "accumulate": accumulate}}
    _, one = train(tmp_path / "1", pipe=double[0], built=RowwiseFlowMatching(), data=DoubleColors(), **whole)
    _, other = train(
        tmp_path / "2", pipe=double[1], built=RowwiseFlowMatching(), data=DoubleColors(), **split
    )
    for a, b in zip(weights(one), weights(other), strict=True):
        assert torch.allclose(a, b, atol=1e-9, rtol=0)


class DoubleColors(Colors):
    def __getitem__(self, index: int) -> dict[str, Any]:
        item = super().__getitem__(index)
        return {**item, "pixels": item["pixels"].double()}


def test_the_average_moves_once_an_optimiser_step(tmp_path: Path) -> None:
    _, trainer = train(tmp_path, train={"steps": 5, "accumulate": 3})
    assert {name: copy.updates for name, copy in trainer.averages.by_file().items()} == {
        "average": 5,
        "teacher": 5,
    }


def test_equal_decays_share_one_average(tmp_path: Path) -> None:
    result, trainer = train(tmp_path, ema={"decay": 0.8, "teacher_decay": 0.8}, train={"steps": 4})
    assert trainer.averages.taught is trainer.averages.drawn
    assert {name: copy.updates for name, copy in trainer.averages.by_file().items()} == {"average": 4}
    assert result.checkpoint is not None
    assert not (result.checkpoint / "teacher.safetensors").exists()


def test_the_clip_bounds_the_gradient(tmp_path: Path) -> None:
    """Plain descent by AdamW's first step does not show a clip; so compare the moments it keeps."""
    norms = {}
    for clip in (None, 0.01):
        _, trainer = train(tmp_path / str(clip), optimizer={"clip": clip}, train={"steps": 1})
        tensors, _ = trainer.state.optimizers.state_dict()
        moments = [value for key, value in tensors.items() if key.startswith("exp_avg|")]
        norms[clip] = torch.cat([m.flatten() for m in moments]).norm().item() / (1 - 0.9)
    assert norms[0.01] == pytest.approx(0.01, rel=1e-3)
    assert norms[None] > 0.1


def test_bf16_forwards_without_gradient_do_not_take_the_students_gradient() -> None:
    """Autocast's cache of cast weights, filled without gradient, would cut the student from its weights."""
    network = nn.Linear(2, 2)
    field = AutocastField(network, device=torch.device("cpu"), dtype=torch.bfloat16)
    x = torch.ones(1, 2)
    with torch.no_grad():
        field(x)
    out = field(x)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert network.weight.grad is not None
    assert field.in_features == 2


def test_bf16_trains(tmp_path: Path) -> None:
    before = TinyPipeline()
    _, trainer = train(tmp_path, train={"precision": "bf16", "steps": 2})
    assert all(w.dtype == torch.float32 for w in weights(trainer))
    changed = [
        not torch.equal(a, b) for a, b in zip(weights(trainer), before.network.parameters(), strict=True)
    ]
    assert all(changed)


class SpoiledTwinFlow(TwinFlow):
    """Gives the row of number 1 an infinite loss in the 6th step, or in all rows an infinite gradient."""

    calls = 0
    gradient_only = False

    def step(self, *arguments: Any, **named: Any) -> Step:
        result = super().step(*arguments, **named)
        self.calls += 1
        if self.calls == 6 and self.gradient_only:
            result.loss.register_hook(lambda gradient: gradient * torch.inf)
        elif self.calls == 6:
            result.rows.loss[1] = torch.inf
            result.loss = result.loss + torch.inf
        return result


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(TwinflowError) as caught:
        train(tmp_path, built=SpoiledTwinFlow(guidance=0.3, teacher="ema"))
    said = str(caught.value)
    assert "step 6: the loss is not finite" in said
    assert "row 1: role " in said
    assert ", t = " in said
    assert ", r = " in said
    assert "the last checkpoint is" in said
    assert "step_00000004" in said
    result, _ = train(tmp_path)  # goes on from there
    assert result.status == "finished"


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights(tmp_path: Path) -> None:
    pipe, spoiled = TinyPipeline(), SpoiledTwinFlow(guidance=0.3, teacher="ema")
    spoiled.gradient_only = True
    with pytest.raises(TwinflowError, match=r"(?s)step 6: the gradient is not finite.*any_step: t in \["):
        train(tmp_path, pipe=pipe, built=spoiled, train={"batch": 8})
    assert all(p.isfinite().all() for p in pipe.network.parameters())


def test_an_average_on_the_host_changes_nothing(tmp_path: Path) -> None:
    """Not the run, nor its pictures, nor the pipeline that it leaves."""
    preview = {"every": 6, "prompts": ["red"], "nfe": [1]}
    files = []
    for there in (False, True):
        folder = tmp_path / str(there)
        train(folder, ema={"decay": 0.9, "teacher_decay": 0.8, "on_host": there}, preview=preview)
        saved = folder / "checkpoints" / "step_00000012"
        names = [f"previews/step_{step:08}_nfe_001.png" for step in (6, 12)]
        names += ["pipeline/model.safetensors", f"{saved.relative_to(folder)}/average.safetensors"]
        files.append([(folder / name).read_bytes() for name in names])
    assert files[0] == files[1]


def test_an_average_that_is_the_teacher_stays(tmp_path: Path) -> None:
    for key, value in (("on_host", True), ("every", 2)):
        with pytest.raises(TwinflowError, match=rf"ema.{key} = {value}: .* choose another ema.teacher_decay"):
            tiny_recipe(tmp_path, ema={"decay": 0.9, "teacher_decay": 0.9, key: value})
    with pytest.raises(TwinflowError, match="there is no average to keep"):
        tiny_recipe(tmp_path, ema={"decay": 0, "on_host": True})


def test_what_a_run_writes(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result, trainer = train(tmp_path, log={"tensorboard": True})
    lines = read_metrics(tmp_path / "metrics.jsonl")
    roles = {"loss/one_step", "loss/tangent", "loss/any_step", "loss/fake", "loss/rectify"}
    assert roles <= {name for line in lines for name in line}
    assert {"loss", "lr", "gradient_norm", "rows_per_second", "seconds"} <= lines[-1].keys()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert roles | {"loss", "lr"} <= set(board.Tags()["scalars"])
    for name in roles:
        shown = {event.step: event.value for event in board.Scalars(name)}
        assert shown == pytest.approx({line["step"]: line[name] for line in lines if name in line}, rel=1e-6)
    assert json.loads((tmp_path / "versions.json").read_text())["torch"] == torch.__version__
    assert trainer.averages.drawn is not None
    assert result.pipeline is not None
    saved, live = TinyPipeline.weights(result.pipeline), dict(trainer.pipe.network.named_parameters())
    averaged = dict(trainer.averages.drawn.network.named_parameters())
    for name, weight in saved.items():
        assert torch.equal(weight, averaged[name])
        assert not torch.equal(weight, live[name])


def test_a_trained_field_points_to_the_colour_that_the_caption_names(tmp_path: Path) -> None:
    """At t = 1 the velocity of flow matching is z - E[x | caption], whatever z is."""
    sections = {"objective": {"name": "flow_matching"}, "train": {"steps": 150, "batch": 32}}
    pipe = TinyPipeline(width=64)
    result, _ = train(tmp_path, pipe=pipe, log={"every": 50}, **sections)
    assert result.pipeline is not None
    pipe.network.load_state_dict(TinyPipeline.weights(result.pipeline))
    z = torch.randn(100, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    one = torch.ones(100)
    for caption in ("red", "green", "blue"):
        with torch.no_grad():
            x = z - pipe.network(z, one, one, pipe.encode_prompts([caption] * 100))
        assert x.mean(dim=(0, 2, 3)).tolist() == pytest.approx(COLORS[caption], abs=0.15)


def test_nothing_to_train_is_told(tmp_path: Path) -> None:
    pipe = TinyPipeline()
    pipe.network.requires_grad_(False)
    with pytest.raises(TwinflowError, match="nothing is trained"):
        train(tmp_path, pipe=pipe)


@dataclass
class Loads(ast.NodeVisitor):
    """Calls and imports that would unpickle."""

    found: list[str]

    def visit_Call(self, node: ast.Call) -> None:
        if ast.unparse(node.func) in {"torch.load", "np.load", "numpy.load", "torch.save", "pickle.load"}:
            self.found.append(ast.unparse(node))
        self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [alias.name for alias in node.names if alias.name in {"pickle", "dill", "joblib"}]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        names = {alias.name for alias in node.names}
        if node.module in {"pickle", "dill", "joblib"} or (
            node.module == "torch" and names & {"load", "save"}
        ):
            self.found.append(ast.unparse(node))


# GenEval's detector and HPSv2.1 are published as pickled checkpoints. torch reads nothing but tensors and plain
# containers from them (weights_only), and only when the user names such a file.
PUBLISHED_CHECKPOINTS = {
    "evaluation/weights_file.py": ["pickle", "torch.load(file, map_location='cpu', weights_only=True)"],
}


def test_no_module_reads_or_writes_pickle() -> None:
    package = Path(twinflow.__file__).parent
    for file in package.rglob("*.py"):
        loads = Loads([])
        loads.visit(ast.parse(file.read_text(encoding="utf-8")))
        allowed = PUBLISHED_CHECKPOINTS.get(file.relative_to(package).as_posix(), [])
        assert loads.found == allowed, f"{file}: {loads.found}"


def test_a_single_process_is_its_own_average() -> None:
    processes, tensor = Processes.current(), torch.ones(2)
    processes.average([tensor])
    assert processes == Processes(0, 1)
    assert processes.gather({"a": tensor}, torch.device("cpu")) == [{"a": tensor}]
    assert processes.any(True, torch.device("cpu"))
