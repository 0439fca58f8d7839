"""Pipelines are opened without their encoders, by what those answered before: the field is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from families import FAMILIES, NAMES
from twinflow.errors import TwinflowError
from twinflow.pipelines import AnyStepPipeline
from twinflow.pipelines.left_out import StandIn, left_out, recorded
from twinflow.sampling import seeded_noise


@pytest.mark.parametrize("name", NAMES)
def test_the_field_is_the_same_without_encoders(tmp_path: Path, name: str) -> None:
    family, folder, record = FAMILIES[name], tmp_path / "model", tmp_path / "opening.safetensors"
    family.stock().save_pretrained(folder, safe_serialization=True)
    with recorded(record):
        whole = AnyStepPipeline.from_pretrained(folder, call=family.call)
    cond = whole.encode_prompts(["a red circle"])
    weights = [file for file in folder.rglob("*.safetensors") if file.parent.name != "transformer"]
    for file in weights:
        file.unlink()  # nobody may want them
    with left_out(folder, record):
        part = AnyStepPipeline.from_pretrained(folder, call=family.call)
    assert part.adapter.wiring == whole.adapter.wiring
    assert part.adapter.folds == whole.adapter.folds
    x, t = seeded_noise(whole.latent_shape, [0]), torch.tensor([0.7])
    with torch.no_grad():
        assert torch.equal(part.field(x, t, 0.5 * t, cond), whole.field(x, t, 0.5 * t, cond))
    stand_ins = {name for name, module in part.pipe.components.items() if isinstance(module, StandIn)}
    assert stand_ins == {file.parent.name for file in weights}
    assert all(p.is_meta for name in stand_ins for p in getattr(part.pipe, name).parameters())
    with pytest.raises(TwinflowError, match=r"is left out, and was asked what is not on record"):
        part.encode_prompts(["another prompt"])
    part.save_pretrained(tmp_path / "saved")
    kept = {file.name for name in stand_ins for file in (tmp_path / "saved" / name).iterdir()}
    assert "config.json" in kept
