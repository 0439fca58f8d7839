"""Detectors, CLIPs and judges say on a GPU what they say on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from evaluation.dpg.items import write_csv
from evaluation.dpg.tiny import save_tiny_vlm
from evaluation.geneval.lines import SIX, write_lines
from evaluation.geneval.tiny import tiny_clip, tiny_detector, tiny_tokenizer
from twinflow.evaluation.benchmark import Benchmark, Finding
from twinflow.evaluation.building import build


def verdicts(tmp_path: Path, device: str) -> list[Finding]:
    """Of GenEval and DPG-Bench on the same noise."""
    tiny_detector().save_pretrained(tmp_path / "detector")
    tiny_clip().save_pretrained(tmp_path / "clip")
    tiny_tokenizer().save_pretrained(tmp_path / "clip")
    save_tiny_vlm(tmp_path / "vlm")
    lines = write_lines(tmp_path / "two.jsonl", SIX[0], SIX[-1])
    geneval = {
        "detector": str(tmp_path / "detector"),
        "colors": str(tmp_path / "clip"),
        "prompts": str(lines),
    }
    (tmp_path / "p.jsonl").write_text(json.dumps({"item_id": "a", "text": "A red cup."}))
    rows = [("a", k, "0", "global", text) for k, text in enumerate(("A photo?", "A cup?", "Red?"), start=1)]
    dpg = {"questions": str(write_csv(tmp_path / "q.csv", rows)), "prompts": str(tmp_path / "p.jsonl")}
    dpg |= {"judge": str(tmp_path / "vlm"), "mode": "compare"}
    found: list[Finding] = []
    for name, own in (("geneval", geneval), ("dpg", dpg)):
        (benchmark,), _ = build([name], common={}, own={name: own | {"device": device}})
        assert isinstance(benchmark, Benchmark)
        benchmark.prepare(tmp_path / name)
        for picture in benchmark.pictures:
            path = tmp_path / name / picture.file
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():  # the same for both devices
                Image.effect_noise((60, 40), 40 + 30 * picture.seed).convert("RGB").save(path)
        found += benchmark.score(tmp_path / name, keep=keep_of(tmp_path, name, device)).findings
    return found


def keep_of(tmp_path: Path, name: str, device: str) -> Path:
    folder = tmp_path / f"{name}-{device}"
    folder.mkdir()
    return folder


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_verdicts_of_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # random weights have many near-ties
    here, there = verdicts(tmp_path, "cpu"), verdicts(tmp_path, "cuda")
    assert [(f.file, f.correct, f.reason) for f in there] == [(f.file, f.correct, f.reason) for f in here]
    for a, b in zip(there, here, strict=True):
        assert [label for label, *_ in a.boxes or []] == [label for label, *_ in b.boxes or []]
