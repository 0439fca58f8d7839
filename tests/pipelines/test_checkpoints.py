"""Any-step checkpoints: lossless, without pickles, and clear about what is wrong with a folder."""

import json
import shutil

import diffusers
import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from families import FAMILIES
from twinflow import hub
from twinflow.errors import TwinflowError
from twinflow.pipelines import AnyStepPipeline
from twinflow.pipelines.absent import absent_transformer
from twinflow.pipelines.checkpoint import BRANCH_FILE, load_stock
from twinflow.pipelines.model_name import CONFIG_FILE

from .tiny import PROMPTS, copy_of, latents, train_branch

load = AnyStepPipeline.from_pretrained


@pytest.fixture(scope="module")
def saved(tiny_pipeline, tmp_path_factory):
    """A trained pipeline and its folder."""
    any_step = train_branch(AnyStepPipeline(copy_of(tiny_pipeline)))
    any_step.words = ["circle", "red"]
    path = tmp_path_factory.mktemp("checkpoint") / "any_step"
    any_step.save_pretrained(path)
    return any_step, path


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of that folder, to be damaged."""
    return shutil.copytree(saved[1], tmp_path / "damaged")


def fields_equal(one: AnyStepPipeline, other: AnyStepPipeline) -> bool:
    t, r = torch.tensor([1.0, 0.6, -0.3]), torch.tensor([0.0, 0.6, -0.3])
    x_t, velocities = latents(one, 3), []
    for any_step in (one, other):
        # safetensors maps tensors unaligned, which changes the order of sums; clones are aligned alike.
        network = any_step.network
        for parameter in network.parameters():
            parameter.data = parameter.data.clone()
        velocities.append(network(x_t, t, r, one.encode_prompts(PROMPTS)))
    return torch.equal(*velocities)


def test_round_trip_is_lossless(saved):
    original, path = saved
    again = load(path)
    assert fields_equal(original, again)
    assert again.words == original.words
    for name, value in original.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value), name
    assert torch.equal(again(PROMPTS, nfe=2).latents, original(PROMPTS, nfe=2).latents)


def test_round_trip_remembers_how_fake_times_are_marked(tiny_pipeline, tmp_path):
    original = train_branch(AnyStepPipeline(copy_of(tiny_pipeline), fake_time="sign"))
    original.save_pretrained(tmp_path)
    again = load(tmp_path, fake_time="negative", target_time=False)  # the folder knows better
    assert fields_equal(original, again)


def test_saving_leaves_the_pipeline_as_it_was(tiny_pipeline, tmp_path):
    any_step = train_branch(AnyStepPipeline(copy_of(tiny_pipeline)))
    before = {name: value.clone() for name, value in any_step.network.state_dict().items()}
    any_step.save_pretrained(tmp_path / "not" / "there" / "yet")
    after = any_step.network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_stock_weights_are_written_under_stock_names(saved, tiny_pipeline):
    _, path = saved
    (file,) = (path / "transformer").glob("*.safetensors")
    weights, stock = load_file(file), tiny_pipeline.transformer.state_dict()
    assert weights.keys() == stock.keys()
    assert all(torch.equal(weights[name], value) for name, value in stock.items())


def test_no_pickle_is_written(saved):
    files = [file for file in saved[1].rglob("*") if file.is_file()]
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".txt"}
    for file in files:
        assert file.read_bytes()[:2] not in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04"), file


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae"])
def test_no_pickle_is_read(folder, part):
    (weights,) = (folder / part).glob("*.safetensors")
    pickled = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
    torch.save(load_file(weights), weights.with_name(pickled))
    weights.unlink()
    with pytest.raises(TwinflowError, match="damaged is not a folder that diffusers can load"):
        load(folder)


def test_a_stock_save_over_an_any_step_checkpoint_leaves_no_branch(folder, tiny_pipeline):
    AnyStepPipeline(copy_of(tiny_pipeline), target_time=False).save_pretrained(folder)
    assert not (folder / BRANCH_FILE).exists()
    assert not load(folder, target_time=False).knows_target_time


def test_a_transformer_that_is_given_is_not_read(tmp_path):
    """Wan's class can do without one, for which diffusers' general opening reads the folder's all the same."""
    FAMILIES["wan"].stock().save_pretrained(tmp_path)
    for file in (tmp_path / "transformer").glob("*.safetensors"):
        file.unlink()
    absent = absent_transformer(str(tmp_path))
    assert load_stock(tmp_path, dtype=torch.float32, transformer=absent).transformer is absent


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(TwinflowError, match=r"missing is not a folder or a model on the hub"):
        load(tmp_path / "missing")
    with pytest.raises(TwinflowError, match=r"is not a diffusers pipeline: it has no model_index.json"):
        load(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(TwinflowError, match="is not a folder that diffusers can load"):
        load(tmp_path)


class Slow(Exception):
    """As the timeouts of the hub's client, which are neither OSErrors nor those that diffusers expects."""


def test_a_hub_that_can_not_be_reached(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TwinflowError, match=r"^nobody/nothing is not a folder or a model on the hub: .*Hub"):
        load("nobody/nothing")
    monkeypatch.undo()

    def never(*args, **kwargs):
        raise Slow("timed out")

    monkeypatch.setattr(hub, "ask", lambda: None)  # it is there, and then not any more
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", never)
    monkeypatch.setattr(diffusers.configuration_utils, "hf_hub_download", never)
    monkeypatch.setattr(diffusers.pipelines.pipeline_utils, "model_info", never)
    with pytest.raises(
        TwinflowError, match=r"^nobody/nothing is not a folder or a model on the hub: timed out"
    ):
        load("nobody/nothing")


NOWHERE = "http://127.0.0.1:9"  # where nothing listens


def test_a_hub_that_is_not_there_is_asked_once(monkeypatch, capfd):
    """Its client would try six times, for half a minute a file, and say so each time."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", NOWHERE)
    saying = (
        rf"^nobody/nothing is no folder here, and the hub can't be reached \({NOWHERE}: .*refused.*network"
    )
    with pytest.raises(TwinflowError, match=saying):
        load("nobody/nothing")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("setting", [("HF_HUB_OFFLINE", True), ("ENDPOINT", NOWHERE)])
def test_a_checkpoint_on_the_hub_brings_its_branch(saved, tmp_path, monkeypatch, setting, capfd):
    """As the hub's client keeps it, without a network."""
    original, path = saved
    kept = tmp_path / "models--someone--one-step"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0" * 40)
    shutil.copytree(path, kept / "snapshots" / ("0" * 40))
    monkeypatch.setattr(huggingface_hub.constants, *setting)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    again = load("someone/one-step")
    assert "Retrying" not in capfd.readouterr().err
    assert huggingface_hub.constants.is_offline_mode() == (setting[0] == "HF_HUB_OFFLINE")
    assert again.base == "someone/one-step"
    assert fields_equal(original, again)


@pytest.mark.parametrize(
    "config",
    ["", "[]", "{}", '{"format": 2, "fake_time": "sign"}', '{"format": 1, "fake_time": "upside down"}'],
)
def test_a_config_of_another_format(folder, config):
    (folder / CONFIG_FILE).write_text(config)
    with pytest.raises(TwinflowError, match=r"twinflow\.json is not of the format"):
        load(folder)


def test_a_branch_that_is_missing_or_broken(folder):
    (folder / BRANCH_FILE).write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(TwinflowError, match=r"target_time\.safetensors.* can't be read"):
        load(folder)
    (folder / BRANCH_FILE).unlink()
    with pytest.raises(TwinflowError, match=r"target_time\.safetensors.* can't be read"):
        load(folder)


@pytest.mark.parametrize("damage", ["less", "more", "shape", "sign"])
def test_a_branch_of_another_transformer(folder, damage):
    branch = load_file(folder / BRANCH_FILE)
    name = next(n for n in branch if n.endswith("linear_1.weight"))
    if damage == "less":
        del branch[name]
    elif damage == "more":
        name = "elsewhere"
        branch[name] = torch.zeros(1)
    elif damage == "shape":
        branch[name] = branch[name][:, :-1].contiguous()
    else:
        name = "fake_embedding"
        (folder / CONFIG_FILE).write_text(json.dumps({"format": 1, "fake_time": "sign"}))
    save_file(branch, folder / BRANCH_FILE)
    with pytest.raises(TwinflowError, match=f"does not fit this transformer.*{name}"):
        load(folder)
