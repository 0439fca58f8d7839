"""FID's Inception-v3 with random weights: its layout, its pooling, its resizing, and files that are something else."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from twinflow.errors import TwinflowError
from twinflow.evaluation.extractors import open_extractor
from twinflow.evaluation.inception import DROPPED, InceptionV3, resize


@pytest.fixture(scope="module")
def network() -> InceptionV3:
    torch.manual_seed(0)
    made = InceptionV3()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() == 4:  # so that neither the signal nor the differences die out on the way
                torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def state(network):
    full = {name: torch.zeros(shape) for name, shape in DROPPED.items()}
    return full | {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}


def test_it_has_the_parameters_of_inception_v3(network):
    """94 convolutions; without the scales of the normalisation 21 802 784 numbers, as Keras counts them."""
    state = network.state_dict()
    kernels = [name for name in state if name.endswith("conv.weight")]
    scales = sum(value.numel() for name, value in state.items() if name.endswith("bn.weight"))
    counts = sum(value.numel() for name, value in state.items() if name.endswith("num_batches_tracked"))
    assert len(kernels) == 94
    assert sum(value.numel() for value in state.values()) - scales - counts == 21_802_784
    for name, shape in {
        "Conv2d_4a_3x3.conv.weight": (192, 80, 3, 3),
        "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_6a.branch3x3dbl_3.bn.running_var": (96,),
        "Mixed_6c.branch7x7dbl_4.conv.weight": (160, 160, 7, 1),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
    }.items():
        assert tuple(state[name].shape) == shape


@pytest.mark.parametrize("name", ["Mixed_7b", "Mixed_7c"])
def test_the_last_blocks_are_their_branches_by_hand(network, name):
    """The order of channels, what lies beyond the edge, and that 7c takes the maximum."""
    block, x = network.get_submodule(name), torch.rand(1, 1280 if name == "Mixed_7b" else 2048, 5, 5)
    weights = block.state_dict()

    def convolve(part, y):
        kernel = weights[f"{part}.conv.weight"]
        y = functional.conv2d(y, kernel, padding=(kernel.shape[2] // 2, kernel.shape[3] // 2))
        found = [weights[f"{part}.bn.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        return functional.batch_norm(y, *found, eps=0.001).relu()

    near = functional.unfold(functional.pad(x, [1] * 4, value=float("nan")), 3).view(1, -1, 9, 5, 5)
    pooled = near.nanmean(2) if name == "Mixed_7b" else near.nan_to_num(-1).amax(2)
    one, two = convolve("branch3x3_1", x), convolve("branch3x3dbl_2", convolve("branch3x3dbl_1", x))
    parts = [convolve("branch1x1", x)]
    parts += [convolve(f"branch3x3_2{side}", one) for side in "ab"]
    parts += [convolve(f"branch3x3dbl_3{side}", two) for side in "ab"]
    parts += [convolve("branch_pool", pooled)]
    torch.testing.assert_close(block(x), torch.cat(parts, dim=1), rtol=1e-4, atol=1e-4)


def test_resizing_counts_from_the_first_pixel_as_tensorflow_did():
    row = torch.tensor([0.0, 10.0]).expand(1, 1, 2, 2)
    expected = (torch.arange(299) * 20 / 299).clamp_max(10)
    torch.testing.assert_close(resize(row)[0, 0, 7], expected)
    torch.testing.assert_close(resize(row.mT)[0, 0, :, 7], expected)
    same = torch.rand(1, 3, 299, 299)
    assert torch.equal(resize(same), same)


def test_features_of_a_file_are_the_network_s(network, state, tmp_path):
    save_file(state, tmp_path / "weights.safetensors")
    extractor = open_extractor(f"inception:{tmp_path / 'weights.safetensors'}")
    assert extractor.name == "inception:weights.safetensors"
    levels = torch.randint(0, 256, (2, 3, 40, 56)).float()
    found = extractor(levels / 127.5 - 1).cpu()
    assert found.shape == (2, 2048)
    assert torch.equal(found, extractor(levels / 127.5 - 1).cpu())
    assert (found[0] - found[1]).abs().max() > 1e-3
    with torch.no_grad():
        expected = network(resize(levels) / 128 - 1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("Mixed_7c.branch_pool.bn.bias"), r"lacks 1 weights, such as Mixed_7c"),
        (lambda s: s.update({"AuxLogits.fc.weight": torch.zeros(1)}), r"has, beyond it, 1 .*AuxLogits"),
        (lambda s: s.update({"fc.weight": torch.zeros(1000, 2048)}), r"another shape 1 .*fc\.weight"),
    ],
)
def test_another_layout_is_refused(state, change, message, tmp_path):
    wrong = {name: value.clone() for name, value in state.items()}
    change(wrong)
    torch.save(wrong, tmp_path / "w.pth")
    with pytest.raises(TwinflowError, match=message):
        open_extractor(f"inception:{tmp_path / 'w.pth'}")


def test_files_that_are_no_weights(tmp_path):
    for name, content in (("a.pth", b"no"), ("a.safetensors", b"no")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TwinflowError, match="can't be read as the weights of FID's Inception-v3"):
            open_extractor(f"inception:{tmp_path / name}")
    with pytest.raises(TwinflowError, match="FileNotFoundError"):
        open_extractor(f"inception:{tmp_path / 'none.pth'}")
    with pytest.raises(TwinflowError, match="are not known"):
        open_extractor("inception")
