"""Every family's export is drawn by diffusers alone, in a process that can't import twinflow: the same pictures."""

import json
from types import SimpleNamespace

import pytest
import torch

from families import FAMILIES, NAMES
from twinflow.errors import TwinflowError
from twinflow.export import to_diffusers
from twinflow.export.diffusers_folder import baked_stock
from twinflow.export.stock import run_steps
from twinflow.pipelines import AnyStepPipeline
from twinflow.pipelines.exported import EXPORT_FILE

from .all_families import PROMPT, draw, run_stock_program, trained

STEPS = (1, 2, 4)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pipes():
    return {name: trained(name) for name in NAMES}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="module")
def stock(pipes, root):
    """Pictures and facts of each export."""
    tasks = {}
    for name, pipe in pipes.items():
        for nfe in STEPS:
            to_diffusers(pipe, root / f"{name}_{nfe}", nfe=nfe)
            tasks[f"{name}_{nfe}"] = {"folder": f"{name}_{nfe}", "family": name}
    return run_stock_program(root, tasks, pipes)


@pytest.mark.parametrize("nfe", STEPS)
@pytest.mark.parametrize("name", NAMES)
def test_stock_pictures_are_the_few_step_samplers(pipes, stock, name, nfe):
    ours = draw(pipes[name], name, nfe)
    torch.testing.assert_close(stock[0][f"{name}_{nfe}"], ours, rtol=0, atol=1e-5)
    assert ours.std() > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_the_target_time_shows_in_the_pictures(pipes, name):
    plain = pipes[name](
        [PROMPT], seeds=[11], style="multi", time_dist=(1.0, 1.0, 1.0), output_type="pt",
        images=[pipes[name].adapter.wiring.call["image"]] if pipes[name].edits else None,
    ).images  # fmt: skip
    assert (plain - draw(pipes[name], name, 1)).abs().max() > 1e-3


def test_exports_are_made_of_stock_classes(stock):
    facts = dict(stock[1])
    assert facts.pop("ours") == []
    for classes in facts.values():
        assert classes["scheduler"].endswith("FlowMatchEulerDiscreteScheduler")
        for name, kind in classes.items():
            assert kind.split(".")[0] in ("diffusers", "transformers", "builtins", "__main__"), (name, kind)


@pytest.mark.parametrize("name", ["sd3", "flux", "qwen_edit", "wan"])
def test_the_card_gives_the_call_that_the_note_gives(stock, root, name):
    card = (root / f"{name}_2" / "README.md").read_text()
    note = json.loads((root / f"{name}_2" / EXPORT_FILE).read_text())
    code = card.split("```python")[1].split("```")[0]
    (line,) = [line for line in code.splitlines() if "num_inference_steps" in line]
    seen = {}

    def pipe(prompt, **arguments):
        seen.update(arguments)
        return SimpleNamespace(images=[None], frames=[None])

    exec(line, {"pipe": pipe, "source": "picture"})
    assert seen.pop("num_inference_steps") == 2
    assert seen.pop("image", None) == ("picture" if name == "qwen_edit" else None)
    assert json.loads(json.dumps(seen)) == note["call"]
    compile(code, "card", "exec")
    assert "torch.manual_seed" in card


def test_an_export_is_refused_for_training_and_drawn_in_its_own_number_of_steps_only(pipes, stock, root):
    folder = root / "wan_2"
    with pytest.raises(TwinflowError, match=r"export for 2 steps.*can't be trained"):
        AnyStepPipeline.from_pretrained(folder)
    again = AnyStepPipeline.from_pretrained(folder, target_time=False, call=pipes["wan"].adapter.wiring.call)
    torch.testing.assert_close(draw(again, "wan", 2), draw(pipes["wan"], "wan", 2), rtol=0, atol=1e-5)
    for wrong in ({"nfe": 1}, {"nfe": 4}, {"nfe": 2, "style": "multi"}, {"nfe": 4, "guidance": 2.0}):
        with pytest.raises(ValueError, match="exactly 2 evaluations"):
            again([PROMPT], **wrong)
    with pytest.raises(TwinflowError, match="export for 2 steps already"):
        to_diffusers(again, root / "again", nfe=1)
    again.save_pretrained(root / "saved")  # and a copy of it still says what it is
    with pytest.raises(TwinflowError, match="export for 2 steps"):
        AnyStepPipeline.from_pretrained(root / "saved")


@pytest.mark.parametrize("part", ["transformer", "transformer_2"])
def test_a_pipeline_of_two_transformers_is_refused_and_its_remedy_takes_either(tmp_path, part):
    """Wan 2.2: one for early and one for late times."""
    one, other = FAMILIES["wan"].stock(), FAMILIES["wan"].stock()
    both = type(one)(**one.components | {"transformer_2": other.transformer}, boundary_ratio=0.875)
    both.save_pretrained(tmp_path / "both")
    with pytest.raises(TwinflowError, match=r"two transformers.*transformer_2=None, boundary_ratio=None"):
        AnyStepPipeline.from_pretrained(tmp_path / "both", call=FAMILIES["wan"].call)
    taken = {} if part == "transformer" else {"transformer": other.transformer}
    stock = type(one).from_pretrained(
        tmp_path / "both", **taken, transformer_2=None, boundary_ratio=None, use_safetensors=True
    )
    stock.save_pretrained(tmp_path / "one")
    pipe = AnyStepPipeline.from_pretrained(tmp_path / "one", call=FAMILIES["wan"].call)
    asked, has = getattr(both, part).state_dict(), pipe.pipe.transformer.state_dict()
    assert all(torch.equal(value, has[name]) for name, value in asked.items())
    assert pipe([PROMPT], nfe=1, seed=0, output_type="latent").latents.isfinite().all()


@pytest.mark.parametrize("nfe", [0, -1, 1.5])
def test_a_number_of_steps_that_there_cannot_be(pipes, tmp_path, nfe):
    with pytest.raises(TwinflowError, match=f"at least 1, got {nfe}"):
        to_diffusers(pipes["flux"], tmp_path / "none", nfe=nfe)
    assert not (tmp_path / "none").exists()


def test_half_precision_sees_the_exact_time(tmp_path):
    """Stock Qwen-Image in bf16 shows its network 753.9 for 750; the export's embedding is that of 750."""
    pipe = trained("qwen")
    embedding = {}
    for dtype in (torch.float32, torch.bfloat16):
        pipe.pipe.transformer.to(dtype)
        stock, _ = baked_stock(pipe, nfe=4)
        seen = []
        mlp = stock.transformer.time_text_embed.timestep_embedder
        mlp.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output.float()))
        run_steps(pipe, stock, PROMPT, nfe=4)
        embedding[dtype] = torch.cat(seen)
    exact, half = embedding.values()
    assert (half - exact).norm() < 2e-2 * exact.norm()
