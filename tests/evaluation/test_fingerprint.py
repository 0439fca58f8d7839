"""Weights are told apart by their bytes, and what was fetched by its commit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from twinflow.evaluation import fingerprint as module
from twinflow.evaluation.fingerprint import SAMPLE, fingerprint, weights_name


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(4 * SAMPLE))
    return folder


def test_a_copy_has_the_same_and_other_weights_another(model, tmp_path):
    first = fingerprint(model)
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / "README.md").write_text("words about it")
    assert fingerprint(copy) == first
    for place in (0, 2 * SAMPLE, 4 * SAMPLE - 1):
        changed = bytearray(4 * SAMPLE)
        changed[place] = 1
        (copy / "model.safetensors").write_bytes(changed)
        assert fingerprint(copy) != first
    assert weights_name(model) == f"model {first}"


def test_a_hub_id_is_its_commit_whatever_was_fetched_of_it(model, monkeypatch):
    assert (
        fingerprint("who/what-is-not-here") == weights_name("who/what-is-not-here") == "who/what-is-not-here"
    )
    monkeypatch.setattr(module, "model_folder", lambda name: model)
    first = fingerprint("who/what")
    (model / "vocab.json").write_text("fetched by another program")
    assert fingerprint("who/what") == first
    assert fingerprint("who/else") != first
    monkeypatch.setattr(module, "model_folder", lambda name: model.with_name("another-commit"))
    assert fingerprint("who/what") != first
