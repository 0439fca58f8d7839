"""The digits are the scans of scikit-learn, in our range, with their names."""

import sys

import pytest
import torch

from twinflow.data.digits import DIGIT_CAPTIONS, DigitsDataset
from twinflow.errors import TwinflowError


def test_scans_and_captions():
    from sklearn.datasets import load_digits

    scans, dataset = load_digits(), DigitsDataset()
    assert len(dataset) == 1797
    for i in (0, 7, 1796):
        item = dataset[i]
        assert item["pixels"].dtype == torch.float32
        assert torch.equal((item["pixels"] + 1) * 8, torch.tensor(scans.images[i], dtype=torch.float32)[None])
        assert item["caption"] == DIGIT_CAPTIONS[scans.target[i]]
    assert DIGIT_CAPTIONS[7] == "a handwritten seven"
    pixels = torch.stack([dataset[i]["pixels"] for i in range(len(dataset))])
    assert (pixels.min().item(), pixels.max().item()) == (-1, 1)
    assert dataset.labels.bincount().min() > 170


def test_channels():
    grey, colour = DigitsDataset()[3]["pixels"], DigitsDataset(channels=3)[3]["pixels"]
    assert (grey.shape, colour.shape) == ((1, 8, 8), (3, 8, 8))
    assert torch.equal(colour, grey.expand(3, 8, 8))
    with pytest.raises(ValueError, match=r"channels.*2"):
        DigitsDataset(channels=2)


def test_items_are_their_own():
    dataset = DigitsDataset()
    before = dataset[0]["pixels"].clone()
    dataset[0]["pixels"].zero_()
    assert torch.equal(dataset[0]["pixels"], before)
    with pytest.raises(IndexError):
        dataset[1797]
    assert sum(1 for _ in dataset) == 1797


def test_missing_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(TwinflowError, match=r"pip install twinflow\[digits\]"):
        DigitsDataset()
