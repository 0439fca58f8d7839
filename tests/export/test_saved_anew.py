"""An export whose note was lost, as when diffusers saves it anew, is recognised all the same."""

import diffusers
import pytest
import torch

from families import FAMILIES, NAMES
from pipelines.tiny import PROMPTS, copy_of, train_branch
from twinflow.config import make_recipe
from twinflow.errors import TwinflowError
from twinflow.export import to_diffusers
from twinflow.launch import launch
from twinflow.pipelines import AnyStepPipeline
from twinflow.pipelines.exported import EXPORT_FILE, Exported
from twinflow.sampling import few_step_times


@pytest.fixture(scope="module")
def trained(tiny_pipeline):
    return train_branch(AnyStepPipeline(copy_of(tiny_pipeline)))


@pytest.mark.parametrize("nfe", [1, 2, 4])
def test_it_draws_in_its_own_number_of_steps_and_is_not_trained(trained, tmp_path, nfe):
    to_diffusers(trained, tmp_path / "export", nfe=nfe)
    stock = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "export")
    stock.save_pretrained(tmp_path / "anew")
    assert not (tmp_path / "anew" / EXPORT_FILE).exists()

    refused = rf"export for {nfe} steps?: .*can't be trained"
    with pytest.raises(TwinflowError, match=refused):
        AnyStepPipeline.from_pretrained(tmp_path / "anew")
    with pytest.raises(TwinflowError, match=refused):
        AnyStepPipeline(stock)
    for target_time in (True, False):
        raw = {
            "model": {"path": str(tmp_path / "anew"), "target_time": target_time},
            "data": {"kind": "shapeworld", "length": 2},
            "objective": {"name": "twinflow"},
            "train": {"steps": 1, "batch": 2},
            "output": str(tmp_path / "run"),
        }
        with pytest.raises(TwinflowError, match=refused):
            launch(make_recipe(raw))
    assert not (tmp_path / "run").exists()

    again = AnyStepPipeline.from_pretrained(tmp_path / "anew", target_time=False)
    assert again.exported == Exported(kind="diffusers", nfe=nfe, times=few_step_times(nfe))
    ours = trained(PROMPTS, nfe=nfe, seed=3, generator=torch.Generator().manual_seed(5))
    drawn = again(PROMPTS, nfe=nfe, seed=3, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(drawn.pixels, ours.pixels, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=f"exactly {nfe} evaluations"):
        again(PROMPTS, nfe=8)
    with pytest.raises(TwinflowError, match="already"):
        to_diffusers(again, tmp_path / "again", nfe=nfe)


@pytest.mark.parametrize("name", NAMES)
def test_no_stock_scheduler_is_taken_for_an_export_s(name):
    assert Exported.of_scheduler(FAMILIES[name].original.scheduler.config) is None
    assert Exported.of_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0).config) is None
