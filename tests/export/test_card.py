"""The code of a model card, typed where diffusers is and twinflow is not, draws the model's picture."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import twinflow.cli.copy_model  # noqa: F401 - puts its command on the app
from families import FAMILIES
from pipelines.tiny import lively_pipeline, train_branch
from twinflow.cli.app import app
from twinflow.errors import TwinflowError
from twinflow.export import to_diffusers, to_lora
from twinflow.export.card import write_lora_card
from twinflow.export.comfyui_call import how_in_comfyui
from twinflow.export.stock import schedule_of
from twinflow.pipelines import AnyStepPipeline, LoraSettings
from twinflow.pipelines.exported import Exported
from twinflow.pipelines.generation import to_pil
from twinflow.pipelines.lora import lora_state_dict
from twinflow.sampling import sample

SEED = 5
TYPED = f"""
import sys
sys.modules["twinflow"] = None  # import twinflow raises ImportError from here on
import torch
from pathlib import Path
for number, file in enumerate(sys.argv[1:]):
    torch.manual_seed({SEED})
    names = {{}}
    exec(Path(file).read_text(), names)
    names["image"].save(f"typed_{{number}}.png")
"""


def code_of(folder: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return code


def commands_of(folder: Path) -> list[str]:
    """What the card tells to type into a shell before."""
    return re.findall(r"`twinflow (.*?)`", (folder / "README.md").read_text())


@pytest.fixture
def lora():
    """On the embedded model, with random factors in the place of trained ones."""
    pipe = AnyStepPipeline.from_pretrained("shapeworld-tiny")
    pipe.add_lora(LoraSettings(rank=2))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in lora_state_dict(pipe.pipe.transformer).values():
            value.add_(0.05 * torch.randn(value.shape, generator=generator))
    return train_branch(pipe)


def drawn(pipe: AnyStepPipeline) -> np.ndarray:
    """The trainer's picture of the card's prompt, from the noise that a stock call draws first."""
    torch.manual_seed(SEED)
    noise = torch.randn(1, *pipe.latent_shape)
    latents = sample(pipe.field, noise, pipe.encode_prompts(["a prompt"]), nfe=1)
    return np.asarray(to_pil(pipe.decode(latents))[0]).astype(int)


def test_typed_code_draws_the_picture(lora, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    to_lora(lora, "exports/lora", nfe=1)
    to_diffusers(lora, Path("exports/folder"), nfe=1)
    assert commands_of(Path("exports/folder")) == []
    (command,) = commands_of(Path("exports/lora"))
    result = CliRunner().invoke(app, command.split(), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    files = []
    for name in ("lora", "folder"):
        files.append(f"{name}.py")
        Path(files[-1]).write_text(code_of(Path("exports") / name))
    run = subprocess.run(
        [sys.executable, "-I", "-c", TYPED, *files],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TQDM_DISABLE": "1"},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    expected = drawn(lora)
    for number in range(2):
        assert abs(np.asarray(Image.open(f"typed_{number}.png")).astype(int) - expected).max() <= 1
    assert expected.std() > 5


def test_the_base_of_a_lora_is_what_stock_diffusers_can_load(lora, tmp_path):
    note = to_lora(lora, tmp_path / "export", nfe=1).exported

    def written(base: str | None) -> str:
        write_lora_card(tmp_path, note, file="a.safetensors", base=base, edits=False, video=False)
        return (tmp_path / "README.md").read_text()

    assert 'from_pretrained("' not in written("authors/model")
    assert "from_pretrained('authors/model')" in written("authors/model")
    assert "- base model: `authors/model`" in written("authors/model")
    assert "twinflow copy-model" not in written("authors/model")
    folder = tmp_path / "base"
    folder.mkdir()
    assert f"from_pretrained('{folder}')" in written(str(folder))
    assert "had no name" in written(None)
    lora.save_pretrained(folder)  # a LoRA is no stock pipeline
    card = written(str(folder))
    assert "DiffusionPipeline.from_pretrained('merged-base')" in card
    assert f"AnyStepPipeline.from_pretrained('{folder}').merged().save_pretrained('merged-base')" in card


def test_the_card_of_a_video_model_that_was_opened_with_its_own_number_of_frames(tmp_path):
    call = {name: value for name, value in FAMILIES["wan"].call.items() if name != "num_frames"}
    to_diffusers(AnyStepPipeline(FAMILIES["wan"].stock(), call=call), tmp_path, nfe=1)
    assert code_of(tmp_path).rstrip().endswith("num_inference_steps=1).frames[0]")
    assert "pipeline_tag: text-to-video" in (tmp_path / "README.md").read_text()


def test_a_card_loads_half_precision_as_such(tmp_path, monkeypatch):
    """The fold is for the times as the pipeline rounds them in the precision that it was exported in."""
    monkeypatch.chdir(tmp_path)
    to_diffusers(AnyStepPipeline(lively_pipeline().to(torch.bfloat16)), "half", nfe=2)
    names: dict = {}
    exec(code_of(Path("half")), names)
    assert names["pipe"].transformer.dtype == torch.bfloat16
    assert Exported.read("half").dtype == "bfloat16"


def test_an_embedded_model_is_copied_once_and_by_its_name(tmp_path):
    with pytest.raises(TwinflowError, match="'nothing' is no embedded model: one of shapeworld-tiny"):
        CliRunner().invoke(app, ["copy-model", "nothing", str(tmp_path / "a")], catch_exceptions=False)
    with pytest.raises(TwinflowError, match="is there already"):
        CliRunner().invoke(app, ["copy-model", "shapeworld-tiny", str(tmp_path)], catch_exceptions=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("nfe", range(1, 17))
def test_comfyui_reads_the_very_times_of_the_fold(nfe):
    """As its node does, by a pattern of plain decimals, into fp32 numbers."""
    note = Exported(kind="lora", nfe=nfe, times=schedule_of(nfe), call={})
    (text,) = re.findall(r"ManualSigmas `(.*?)`", how_in_comfyui(note, load="here"))
    read = torch.tensor([float(word) for word in re.findall(r"[-+]?(?:\d*\.*\d+)", text)])
    assert torch.equal(read, torch.tensor([*note.times, 0.0]))


@pytest.mark.parametrize("is_an_input", [True, False])
def test_comfyui_is_told_the_guidance_that_a_network_takes_as_input(tmp_path, is_an_input):
    """It has a default of its own, which need not be what was trained with; elsewhere CFG 1 says all."""
    note = Exported(kind="lora", nfe=2, times=[1.0, 0.6], call={"guidance_scale": 2.0})
    file = "comfyui_lora.safetensors"
    write_lora_card(
        tmp_path, note, file=file, base=None, edits=False, video=False, guidance_is_an_input=is_an_input
    )
    card = (tmp_path / "README.md").read_text()
    assert "CFGGuider, cfg 1;" in card
    assert ("FluxGuidance 2;" in card) == is_an_input
