"""The converted detector computes what mmdet's computes: equal logits, from an independent forward pass."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from evaluation.geneval.mmdet_oracle import Architecture, Oracle, random_state
from twinflow.errors import TwinflowError
from twinflow.evaluation.geneval.convert import convert_checkpoint, convert_model, pixel_first
from twinflow.evaluation.geneval.detector import Mask2FormerDetector


@pytest.fixture(scope="module")
def state():
    return random_state()


@pytest.fixture(scope="module")
def model(state):
    return convert_model(state)


@pytest.mark.parametrize("size", [(64, 96), (96, 160)])  # windows that fit, and that need padding
@torch.inference_mode()
def test_logits_equal_those_of_an_independent_mmdet(state, model, size):
    pixels = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    classes, masks = Oracle(state)(pixels)
    output = model(pixel_values=pixels)
    assert output.class_queries_logits.shape == (1, Architecture.queries, 81)
    assert classes.std() > 0.1
    assert masks.std() > 0.1
    torch.testing.assert_close(output.class_queries_logits[0], classes, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(output.masks_queries_logits[0], masks, atol=2e-3, rtol=1e-4)


@pytest.mark.slow
@torch.inference_mode()
def test_every_parameter_matters_to_the_comparison(state, model):
    """The oracle sees a swap in any kind of parameter: otherwise equality would say nothing about it."""
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    classes, masks = Oracle(state)(pixels)
    generator = torch.Generator().manual_seed(2)
    blind = []
    for name, value in state.items():
        changed = value + 0.5 * torch.randn(value.shape, generator=generator)
        other = Oracle({**state, name: changed})(pixels)
        if torch.allclose(other[0], classes, atol=1e-3) and torch.allclose(other[1], masks, atol=1e-2):
            blind.append(name)
    assert blind == []


def test_patch_merging_orders_channels_as_unfold_does():
    """A merging of transformers, given the reordered weight, equals nn.Unfold and the original weight."""
    picture = torch.randn(1, 5, 4, 6)
    weight = torch.randn(7, 20)
    mmdet = nn.Unfold(2, stride=2)(picture).transpose(1, 2) @ weight.T
    x = picture.permute(0, 2, 3, 1)
    slices = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    other = torch.cat(slices, -1).flatten(1, 2) @ pixel_first(weight).T
    torch.testing.assert_close(other, mmdet)


def test_a_checkpoint_becomes_a_folder_that_says_where_it_came_from(tmp_path, state, model):
    path = tmp_path / "tiny.pth"
    torch.save({"meta": {"epoch": 50}, "state_dict": state}, path)
    name = convert_checkpoint(path, tmp_path / "out")
    assert "tiny.pth" in name  # not the official file, and it says so
    detector = Mask2FormerDetector.load(tmp_path / "out")
    assert detector.name == name
    for key, value in model.state_dict().items():
        assert torch.equal(detector.model.state_dict()[key], value), key
    assert detector.model.config.num_attention_heads == Architecture.heads


def test_what_is_there_is_not_written_over_unless_it_is_a_detector_too(tmp_path, state):
    path = tmp_path / "tiny.pth"
    torch.save({"state_dict": state}, path)
    convert_checkpoint(path, tmp_path / "out")
    convert_checkpoint(path, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    for there in (path, tmp_path / "mine"):
        with pytest.raises(TwinflowError, match="give another folder"):
            convert_checkpoint(path, there)
    with pytest.raises(TwinflowError, match="can't be read"):
        convert_checkpoint(tmp_path / "mine", tmp_path / "new")


@dataclass
class Payload:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_code_in_a_pickle_is_not_run(tmp_path, capsys):
    path = tmp_path / "evil.pth"
    with path.open("wb") as file:
        pickle.dump({"state_dict": Payload()}, file)
    with pytest.raises(TwinflowError, match="runs no pickled code"):
        convert_checkpoint(path, tmp_path / "out")
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "out").exists()


def test_other_checkpoints_are_refused(tmp_path, state):
    with pytest.raises(TwinflowError, match="there is no checkpoint"):
        convert_checkpoint(tmp_path / "absent.pth", tmp_path / "out")
    torch.save({"state_dict": {"backbone.conv1.weight": torch.zeros(1)}}, tmp_path / "resnet.pth")
    with pytest.raises(TwinflowError, match="not a Mask2Former"):
        convert_checkpoint(tmp_path / "resnet.pth", tmp_path / "out")
    with pytest.raises(TwinflowError, match=r"'backbone\.other' is no parameter"):
        convert_model({**state, "backbone.other": torch.zeros(1)})
    short = {name: value for name, value in state.items() if "post_norm" not in name}
    with pytest.raises(TwinflowError, match="missing"):
        convert_model(short)
