"""Compiled networks: the losses of a run stay what they were, and like blocks share a graph."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from twinflow.assets import ROOT
from twinflow.config import load_recipe
from twinflow.errors import TwinflowError
from twinflow.launch import launch
from twinflow.training.compiling import compile_networks

RECIPE = Path(__file__).parents[2] / "recipes" / "shapeworld_twinflow.yaml"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.linear(x).relu()


class Network(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_like_blocks_share_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all networks; and one graph for each network where the whole is compiled."""
    from torch._dynamo.testing import CompileCounter

    compiled = nn.Module.compile
    for how, graphs in (("blocks", 1), (True, 2)):
        counter = CompileCounter()
        monkeypatch.setattr(nn.Module, "compile", lambda self, c=counter: compiled(self, backend=c))
        torch._dynamo.reset()
        torch.manual_seed(0)
        networks = [Network(3), Network(5)]
        plain = copy.deepcopy(networks)
        compile_networks(networks, how=how)
        x = torch.randn(4, 8)
        with torch.no_grad():  # with it, the first input has no gradient and the others have: another graph
            for network, same in zip(networks, plain, strict=True):
                assert torch.equal(network(x), same(x))
        assert counter.frame_count == graphs, how


def test_a_network_without_repeated_blocks() -> None:
    with pytest.raises(
        TwinflowError, match=r"train.compile = 'blocks': Linear has no repeated blocks: set it to true"
    ):
        compile_networks([nn.Linear(2, 2)], how="blocks")
    compile_networks([nn.Linear(2, 2)], how=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [[], ["model={path: shapeworld-tiny, train: lora, lora: {rank: 2}}", "ema.on_host=true"]],
    ids=["a frozen copy teaches", "the base under a LoRA teaches, the average is on the host"],
)
def test_a_run_with_compiled_blocks_has_the_losses_of_one_without(
    changes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as torch takes blocks apart (backend ``eager``: kernels are its own matter), rows of several counts."""
    compiled, called = nn.Module.compile, []

    def compile(self: nn.Module) -> None:
        called.append(self)
        compiled(self, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", compile)
    torch._dynamo.reset()
    found = {}
    for how in ("blocks", "false"):
        short = [
            "data.length=16",
            "train.steps=2",
            "train.batch=4",
            "optimizer.warmup_steps=1",
            "preview.every=0",
            "log.every=1",
            "log.tensorboard=false",
            f"train.compile={how}",
            f"output={tmp_path / how}",
        ]
        # Torch's own limit is too low for the graphs of a run, and more graphs than it are an error here.
        with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=True):
            launch(load_recipe(RECIPE, [*changes, *short]))
        lines = (tmp_path / how / "metrics.jsonl").read_text().splitlines()
        found[how] = [json.loads(line)["loss"] for line in lines]
    # Blocks of the student, and of the copies that have blocks: an average and the teacher, or none.
    layers = json.loads((ROOT / "shapeworld-tiny/transformer/config.json").read_text())["num_layers"]
    assert len(called) == layers * (1 if changes else 3)
    assert len(found["false"]) == 2
    assert found["blocks"] == pytest.approx(found["false"], rel=1e-6)
