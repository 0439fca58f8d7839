"""Steps whose rows are on another device: draws are made on the host, all else where the rows are.

On the device "meta", which has no numbers: an operation that mixes devices, or one that has to read a number from the
device and so would wait for it, is an error there, as it is (or is slow) on a GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from twinflow.objectives import Objective
from twinflow.recipes.objective import OBJECTIVES, build_objective, resolve_objective
from twinflow.sampling import sample

AWAY = torch.device("meta")
SHAPE = (4, 8, 8)


class Network(nn.Module):
    """A field that insists on where its arguments are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(SHAPE, device=AWAY))

    def forward(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Tensor) -> Tensor:
        assert {x_t.device, t.device, r.device, cond.device} == {AWAY}
        assert t.dtype == r.dtype == torch.float32
        return x_t * self.weight * t[:, None, None, None] + (r[:, None] + cond)[:, :1, None, None]

    def features(self, x_t: Tensor, t: Tensor, cond: Tensor) -> list[Tensor]:
        return [(x_t * self.weight).flatten(2)]


OF_TWINFLOW: tuple[dict[str, Any], ...] = (
    {"teacher": "self", "guidance": 0.5},
    {"teacher": "ema", "guidance": 0.3, "lockstep": True},
    {"teacher": "frozen", "guidance": 1.0, "image_free": True},
)
PARTS = ("reconstruction", "caption_reading")  # of pipelines, whose fields are others
CASES = [("twinflow", case) for case in OF_TWINFLOW] + [
    (name, {}) for name in OBJECTIVES if name not in ("twinflow", *PARTS)
]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_a_step_mixes_no_devices_and_reads_nothing(name: str, settings: dict[str, Any]) -> None:
    objective: Objective = build_objective(resolve_objective({"name": name, **settings}))
    field, generator = Network(), Generator().manual_seed(0)
    networks = {
        key: Network() if spec.build is None else spec.build([torch.empty(1, 4, 64)]).to(AWAY)
        for key, spec in objective.networks().items()
    }
    x, cond = torch.empty(5, *SHAPE, device=AWAY), torch.empty(5, 3, device=AWAY)
    teacher = None if getattr(objective, "teacher", "self") == "self" else Network()
    others = {"networks": networks} if networks else {}
    for number in range(3):  # other roles, and other phases
        objective.begin(number, 3)
        step = objective.step(field, x, cond, uncond=cond[:1], teacher=teacher, generator=generator, **others)
        assert step.loss.device == AWAY
        step.loss.backward()


@pytest.mark.parametrize("style", ["few", "any", "multi"])
def test_sampling_mixes_no_devices_and_reads_nothing(style: Any) -> None:
    noise, cond = torch.empty(2, *SHAPE, device=AWAY), torch.empty(2, 3, device=AWAY)
    options = {"guidance": 2.0, "uncond": cond[:1]} if style == "multi" else {}
    drawn = sample(
        Network(), noise, cond, nfe=4, style=style, generator=Generator().manual_seed(0), **options
    )
    assert drawn.device == AWAY
    assert drawn.shape == noise.shape
