"""A LoRA on a base in 8 or 4 bits: close to the base, trained, saved without it."""

import pytest
import torch

from families import FAMILIES
from twinflow.errors import TwinflowError
from twinflow.pipelines import AnyStepPipeline, LoraSettings
from twinflow.pipelines.checkpoint import fingerprint
from twinflow.pipelines.lora import lora_layers
from twinflow.pipelines.quantise import LIBRARIES, quantise

from .driven import PROMPTS, noise, opened

# Largest error of a weight in units of the largest of its row, or of its block: half a step of 127, or half the widest
# gap between the 16 values of NF4 (0.304, from -1 to -0.696). Scales are rounded too, to some 1/1000.
ERROR = {"int8": 0.5 / 127, "nf4": 0.152}
T, R = torch.tensor([1.0, 0.37, 0.807]), torch.tensor([0.0, 0.2, 0.1])


@pytest.mark.parametrize("kind", LIBRARIES)
def test_a_lora_is_trained_on_a_quantised_base(kind, tmp_path):
    pytest.importorskip(LIBRARIES[kind])
    family = FAMILIES["flux"]
    plain = opened(family)
    stock = family.stock()
    weights = {name: value.clone() for name, value in stock.transformer.state_dict().items()}
    layers = quantise(stock.transformer, kind)
    assert "transformer_blocks.0.ff.net.2" in layers
    assert not any("time" in name or "embedder" in name or name == "proj_out" for name in layers)
    for name in layers:
        now = stock.transformer.get_submodule(name)
        unit = torch.eye(now.in_features)
        with torch.no_grad():
            weight = (now(unit) - now.bias).T
        exact = weights[f"{name}.weight"]
        assert float((weight - exact).abs().max() / exact.abs().max()) < ERROR[kind] * 1.01
    any_step = AnyStepPipeline(stock, call=family.call)
    assert fingerprint(any_step.pipe.transformer) == fingerprint(plain.pipe.transformer)
    x, cond = noise(plain), plain.encode_prompts(PROMPTS)
    with torch.no_grad():
        expected, base = plain.field(x, T, T, cond), any_step.field(x, T, T, cond)
    assert 0 < float((base - expected).norm() / expected.norm()) < 0.5

    any_step.add_lora(LoraSettings(rank=2))
    assert set(layers) & set(lora_layers(any_step.pipe.transformer))
    frozen = {n: p for n, p in any_step.network.named_parameters() if not p.requires_grad}
    kept = {name: p.detach().clone() for name, p in frozen.items()}
    parameters = [p for p in any_step.network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    losses = []
    for _ in range(20):
        loss = (any_step.field(x, T, R, cond) - x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(_plain(p), _plain(kept[name])) for name, p in frozen.items())
    with torch.no_grad():
        assert torch.equal(any_step.network.frozen_twin()(x, T, R, cond), base)

    any_step.save_pretrained(tmp_path)
    again = opened(family)  # on the base as it is stored, where it can be merged
    again.load_lora(tmp_path)
    again.merge_lora()
    with pytest.raises(TwinflowError, match=r"can't be merged: .* is quantised"):
        any_step.merge_lora()


def _plain(tensor):
    return (
        tensor.dequantize()
        if hasattr(tensor, "dequantize") and type(tensor).__name__ == "Int8Tensor"
        else tensor
    )


@pytest.mark.parametrize("kind", LIBRARIES)
def test_a_library_that_is_not_there(kind, monkeypatch):
    monkeypatch.setattr("twinflow.pipelines.quantise.find_spec", lambda name: None)
    with pytest.raises(TwinflowError, match=rf"quantize = '{kind}' needs {LIBRARIES[kind]}: pip install"):
        AnyStepPipeline.from_pretrained("shapeworld-tiny", quantize=kind)


def test_a_kind_that_is_not_known():
    with pytest.raises(TwinflowError, match="quantize = 'int3' is not known: use one of int8, nf4"):
        AnyStepPipeline.from_pretrained("shapeworld-tiny", quantize="int3")
