"""What we write is loaded and run by diffusers alone, in a process where twinflow can't be imported."""

import copy
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.tiny import PROMPTS, copy_of, latents, train_branch
from twinflow.errors import TwinflowError
from twinflow.export import to_diffusers
from twinflow.export.run import ExportRequest, export_model
from twinflow.pipelines import AnyStepPipeline
from twinflow.pipelines.exported import EXPORT_FILE
from twinflow.sampling import seeded_noise

STEPS = (1, 2, 4)
SEEDS = [11, 12, 13]
RENOISE_SEED = 7
TIMES = torch.tensor([1.0, 0.7, 0.2])

STOCK_PROGRAM = """
import json, sys
sys.modules["twinflow"] = None  # import twinflow raises ImportError from here on
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

root = sys.argv[1]
inputs, prompts = load_file(root + "/inputs.safetensors"), json.load(open(root + "/prompts.json"))
tensors, facts = {}, {}
for nfe in (1, 2, 4):
    pipe = DiffusionPipeline.from_pretrained(f"{root}/export_{nfe}")
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(int(inputs["renoise_seed"]))  # the stock scheduler re-noises from the global generator
    images = pipe(prompts, guidance_scale=0, num_inference_steps=nfe, latents=inputs["noise"], output_type="pt")
    tensors[f"pixels_{nfe}"] = images.images.contiguous()
    facts[f"export_{nfe}"] = [
        {name: f"{type(part).__module__}.{type(part).__name__}" for name, part in pipe.components.items()},
        list(pipe.transformer.state_dict()),
    ]
with torch.no_grad():
    transformer = DiffusionPipeline.from_pretrained(root + "/any_step").transformer
    tensors["velocity"] = transformer(
        hidden_states=inputs["noise"], timestep=1000 * inputs["times"],
        encoder_hidden_states=inputs["encoder_hidden_states"], pooled_projections=inputs["pooled_projections"],
    ).sample.contiguous()
facts["ours"] = [name for name in sys.modules if name.startswith("twinflow") and sys.modules[name] is not None]
save_file(tensors, root + "/outputs.safetensors")
json.dump(facts, open(root + "/facts.json", "w"))
"""


@pytest.fixture(scope="module")
def trained(tiny_pipeline):
    return train_branch(AnyStepPipeline(copy_of(tiny_pipeline)))


@pytest.fixture(scope="module")
def root(trained, tmp_path_factory):
    """A folder with the exports for 1, 2 and 4 steps, an any-step checkpoint, and what stock code made of them."""
    root = tmp_path_factory.mktemp("exports")
    for nfe in STEPS:
        to_diffusers(trained, root / f"export_{nfe}", nfe=nfe)
    trained.save_pretrained(root / "any_step")
    embeds, _, pooled, _ = trained.pipe.encode_prompt(PROMPTS, None, None, do_classifier_free_guidance=False)
    inputs = {
        "noise": seeded_noise(trained.latent_shape, SEEDS),
        "renoise_seed": torch.tensor(RENOISE_SEED),
        "times": TIMES,
        "encoder_hidden_states": embeds.contiguous(),
        "pooled_projections": pooled.contiguous(),
    }
    save_file(inputs, root / "inputs.safetensors")
    (root / "prompts.json").write_text(json.dumps(PROMPTS))
    run = subprocess.run(
        [sys.executable, "-I", "-c", STOCK_PROGRAM, str(root)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return root


@pytest.fixture(scope="module")
def outputs(root):
    return load_file(root / "outputs.safetensors")


@pytest.fixture(scope="module")
def facts(root):
    return json.loads((root / "facts.json").read_text())


@pytest.mark.parametrize("nfe", STEPS)
def test_stock_call_draws_the_pictures_of_the_few_step_sampler(trained, outputs, nfe):
    generator = torch.Generator().manual_seed(RENOISE_SEED)  # the stream of torch.manual_seed
    ours = trained(PROMPTS, nfe=nfe, seeds=SEEDS, generator=generator)
    stock = 2 * outputs[f"pixels_{nfe}"] - 1
    torch.testing.assert_close(stock, ours.pixels, rtol=0, atol=1e-5)
    # The test can tell: without the branch the pictures are others.
    plain = trained(PROMPTS, nfe=nfe, seeds=SEEDS, style="multi", time_dist=(1.0, 1.0, 1.0))
    assert (plain.pixels - ours.pixels).abs().max() > 1e-2


def test_any_step_checkpoint_is_the_stock_network_at_r_equal_t(trained, outputs):
    cond = trained.encode_prompts(PROMPTS)
    with torch.no_grad():
        expected = trained.field(seeded_noise(trained.latent_shape, SEEDS), TIMES, TIMES, cond)
    torch.testing.assert_close(outputs["velocity"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("nfe", STEPS)
def test_exports_have_stock_classes_and_names(tiny_pipeline, facts, nfe):
    classes, names = facts[f"export_{nfe}"]
    assert names == list(tiny_pipeline.transformer.state_dict())
    for name, part in tiny_pipeline.components.items():
        assert classes[name] == f"{type(part).__module__}.{type(part).__name__}"
    assert facts["ours"] == []


def test_exports_hold_no_pickle_and_nothing_of_ours_but_a_note(root):
    for nfe in STEPS:
        files = [file for file in (root / f"export_{nfe}").rglob("*") if file.is_file()]
        assert {file.suffix for file in files} <= {".json", ".safetensors", ".txt", ".md"}
        ours = {file.name for file in files if "twinflow" in file.name or "target_time" in file.name}
        assert ours == {EXPORT_FILE}
        stock = [file for file in files if file.suffix == ".json" and file.name != EXPORT_FILE]
        assert "twinflow" not in "".join(file.read_text() for file in stock).lower()


@pytest.mark.parametrize("fake_time", ["negative", "sign"])
def test_exporting_leaves_the_pipeline_as_it_was(tiny_pipeline, tmp_path, fake_time):
    any_step = train_branch(AnyStepPipeline(copy_of(tiny_pipeline), fake_time=fake_time))
    stock, network, scheduler = any_step.pipe, any_step.network, any_step.pipe.scheduler
    weights, processors = copy.deepcopy(network.state_dict()), dict(stock.transformer.attn_processors)
    config, schedule, parts = dict(stock.config), dict(scheduler.config), dict(stock.components)
    t, r = torch.tensor([1.0, 0.5, -0.5]), torch.tensor([0.0, 0.2, -0.5])
    args = (latents(any_step, 3), t, r, any_step.encode_prompts(PROMPTS))
    velocity = network(*args)
    to_diffusers(any_step, tmp_path, nfe=2)
    assert torch.equal(network(*args), velocity)
    assert list(network.state_dict()) == list(weights)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in weights.items())
    assert (dict(stock.config), dict(scheduler.config)) == (config, schedule)
    assert all(stock.components[name] is part for name, part in parts.items())
    assert all(stock.transformer.attn_processors[name] is p for name, p in processors.items())


def test_an_export_over_an_any_step_checkpoint_is_an_export(tiny_pipeline, tmp_path):
    any_step = train_branch(AnyStepPipeline(copy_of(tiny_pipeline)))
    expected = any_step(PROMPTS).pixels
    any_step.save_pretrained(tmp_path)
    to_diffusers(any_step, tmp_path, nfe=1)
    again = AnyStepPipeline.from_pretrained(tmp_path, target_time=False)
    assert not again.knows_target_time
    torch.testing.assert_close(again(PROMPTS).pixels, expected, rtol=0, atol=1e-5)


def test_an_export_over_weights_in_several_files_is_read_whole(tiny_pipeline, trained, tmp_path):
    """An index of files that are there no more would be read in the place of the new file."""
    copy_of(tiny_pipeline).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1
    to_diffusers(trained, tmp_path, nfe=1)
    assert len(list((tmp_path / "transformer").glob("*.safetensors*"))) == 1
    again = AnyStepPipeline.from_pretrained(tmp_path, target_time=False)
    torch.testing.assert_close(again(PROMPTS).pixels, trained(PROMPTS).pixels, rtol=0, atol=1e-5)


def test_an_export_that_was_not_written_to_its_end_is_no_pipeline(trained, tmp_path):
    """Else half of an export for one step and half of another for two would draw."""
    trained.save_pretrained(tmp_path / "trained")
    request = ExportRequest(model=str(tmp_path / "trained"), output=tmp_path / "export")
    export_model(request)
    (weights,) = (tmp_path / "export/text_encoder").glob("*.safetensors")
    weights.unlink()
    weights.mkdir()  # as good as a full disk
    with pytest.raises(TwinflowError, match="could not be written to its end"):
        export_model(replace(request, nfe=2))
    with pytest.raises(TwinflowError, match=r"not a diffusers pipeline: it has no model_index\.json"):
        AnyStepPipeline.from_pretrained(tmp_path / "export", target_time=False)


def test_a_pipeline_without_a_branch_is_exported_as_it_is(tiny_pipeline, tmp_path):
    to_diffusers(AnyStepPipeline(copy_of(tiny_pipeline), target_time=False), tmp_path, nfe=1)
    (file,) = (tmp_path / "transformer").glob("*.safetensors")
    for name, value in load_file(file).items():
        assert torch.equal(value, tiny_pipeline.transformer.state_dict()[name])
