"""Benchmarks and measures by name: what each is, what it needs, how it is built. Listing builds nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from twinflow.errors import TwinflowError
from twinflow.evaluation.benchmark import Benchmark, Measure, Requirement

# Modules with an ENTRY; one that this installation lacks is left out.
_MODULES = (
    "twinflow.evaluation.geneval.benchmark",
    "twinflow.evaluation.dpg.benchmark",
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """``build(**options)`` makes it; options come from the command line as text."""

    name: str
    kind: Literal["benchmark", "measure"]
    summary: str  # one sentence
    build: Callable[..., Benchmark | Measure]
    options: Mapping[str, str] = field(default_factory=dict)  # name -> what it is, with its default
    requires: Sequence[Requirement] = ()


def _shapeworld(**options: Any) -> Benchmark:
    from twinflow.evaluation.shapeworld_benchmark import ShapeWorldBenchmark

    return ShapeWorldBenchmark(**_numbers(options, "images_per_task", "seed"))


def _prompts(**options: Any) -> Benchmark:
    from twinflow.evaluation.prompt_file import PromptFile

    if "prompts" not in options:
        raise TwinflowError("the benchmark 'prompts' needs a file of prompts: --prompts FILE")
    return PromptFile(**_numbers(options, "images_per_prompt", "seed"))


def _sharpness() -> Measure:
    from twinflow.evaluation.measures import Sharpness

    return Sharpness()


def _diversity(**options: Any) -> Measure:
    from twinflow.evaluation.measures import SeedDiversity

    return SeedDiversity(**options)


def _distribution(**options: Any) -> Measure:
    from twinflow.evaluation.measures import Distribution

    return Distribution(**_numbers(options, "k"))


_CLIP_L14, _CLIP_H14 = "openai/clip-vit-large-patch14", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


def _prompt_score(name: str, title: str, **defaults: str) -> Callable[..., Measure]:
    def build(**options: str) -> Measure:
        from twinflow.evaluation.clip_scores import ClipScorer
        from twinflow.evaluation.measures import PromptScore

        chosen = defaults | options
        if "model" not in chosen:
            raise TwinflowError(
                f"{name} needs its weights: --with {name}.model=FILE; `twinflow eval --list` says where they are"
            )
        return PromptScore(name, title, ClipScorer(name, chosen.pop("model"), **chosen))

    return build


def _numbers(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """``options`` with those called ``names`` as whole numbers."""
    result = dict(options)
    for name in names:
        if name in options:
            try:
                result[name] = int(options[name])
            except ValueError as error:
                raise TwinflowError(f"{name} must be a whole number, got {options[name]!r}") from error
    return result


_OWN = (
    Entry(
        name="shapeworld",
        kind="benchmark",
        summary="Coloured shapes with captions of GenEval's six kinds, and a verifier that is exact.",
        build=_shapeworld,
        options={
            "level": "tiny or full (tiny)",
            "images_per_task": "pictures of each of the six tasks (200)",
            "seed": "seed of the noise, and of the order of the captions (0)",
        },
        requires=(
            Requirement(what="prompts and verifier", size="0", licence="Apache-2.0", source="in the package"),
        ),
    ),
    Entry(
        name="prompts",
        kind="benchmark",
        summary="Any file of prompts: has no score of its own, measures are taken on its pictures.",
        build=_prompts,
        options={
            "prompts": 'a file with a prompt a line, or .jsonl with a "prompt" in each object',
            "images_per_prompt": "pictures of each prompt (1)",
            "seed": "seed of the noise (0)",
        },
    ),
    Entry(
        name="sharpness",
        kind="measure",
        summary="Sharpness (deviation of the Laplacian) and RMS contrast; read them beside the base's.",
        build=_sharpness,
    ),
    Entry(
        name="diversity",
        kind="measure",
        summary="How different the pictures of one prompt are: mean distance of features, Vendi score.",
        build=_diversity,
        options={
            "features": "pixels, texture, dinov2:MODEL, clip:MODEL, inception:FILE or python:module:function (texture)",
            "distance": "l1, l2 or cosine (cosine)",
        },
        requires=(
            Requirement(
                what="features dinov2:facebook/dinov2-base, if chosen",
                size="346 MB",
                licence="Apache-2.0",
                source="hub facebook/dinov2-base",
                option="--with diversity.features=dinov2:FOLDER",
            ),
        ),
    ),
    Entry(
        name="distribution",
        kind="measure",
        summary="Fréchet distance, KID, precision, recall, density and coverage against reference pictures.",
        build=_distribution,
        options={
            "reference": "a folder of pictures, or statistics (.safetensors)",
            "features": "pixels, texture, dinov2:MODEL, clip:MODEL, inception:FILE or python:module:function (texture)",
            "k": "neighbours of precision and recall (5)",
        },
        requires=(
            Requirement(
                what="reference pictures",
                size="yours",
                licence="yours",
                source="a folder",
                option="--with distribution.reference=FOLDER",
            ),
            Requirement(
                what="features inception:FILE, if chosen: FID's Inception-v3 of 2015 in torchvision's names",
                size="about 95 MB",
                licence="Apache-2.0 (its conversion's repository)",
                source="github.com/mseitzer/pytorch-fid, release fid_weights, pt_inception-2015-12-05-6726825d.pth",
                option="--with distribution.features=inception:FILE",
            ),
            Requirement(
                what="features dinov2:facebook/dinov2-large, if chosen",
                size="1.2 GB",
                licence="Apache-2.0",
                source="hub facebook/dinov2-large",
                option="--with distribution.features=dinov2:FOLDER",
            ),
        ),
    ),
    Entry(
        name="clip",
        kind="measure",
        summary="CLIPScore: 100 max(cosine, 0) of picture and prompt.",
        build=_prompt_score("clip", "CLIPScore", model=_CLIP_L14),
        options={
            "model": f"a CLIP model ({_CLIP_L14})",
            "prefix": "put before each prompt, such as 'A photo depicts ' (nothing)",
        },
        requires=(
            Requirement(
                what="CLIP ViT-L/14",
                size="1.7 GB",
                licence="MIT (code; the weights name none)",
                source=f"hub {_CLIP_L14}",
                option="--with clip.model=FOLDER",
            ),
        ),
    ),
    Entry(
        name="pickscore",
        kind="measure",
        summary="PickScore: what people preferred among pictures of one prompt, as a CLIP ViT-H/14 learnt it.",
        build=_prompt_score(
            "pickscore", "PickScore", model="yuvalkirstain/PickScore_v1", processor=_CLIP_H14
        ),
        options={
            "model": "the weights (yuvalkirstain/PickScore_v1)",
            "processor": f"tokenizer and preprocessing ({_CLIP_H14})",
        },
        requires=(
            Requirement(
                what="PickScore v1",
                size="3.9 GB",
                licence="not stated by its authors",
                source="hub yuvalkirstain/PickScore_v1",
                option="--with pickscore.model=FOLDER",
            ),
            Requirement(
                what="tokenizer and preprocessing",
                size="4 MB",
                licence="MIT",
                source=f"hub {_CLIP_H14}",
                option="--with pickscore.processor=FOLDER",
            ),
        ),
    ),
    Entry(
        name="hps",
        kind="measure",
        summary="HPSv2.1: human preference, times 100; its weights are a file in open_clip's layout.",
        build=_prompt_score("hps", "HPSv2.1", processor=_CLIP_H14),
        options={
            "model": "HPS_v2.1_compressed.pt, read as tensors alone, or the same as .safetensors",
            "processor": f"configuration, tokenizer and preprocessing ({_CLIP_H14})",
        },
        requires=(
            Requirement(
                what="HPS v2.1",
                size="2 GB",
                licence="Apache-2.0",
                source="hub xswu/HPSv2, HPS_v2.1_compressed.pt",
                option="--with hps.model=FILE",
            ),
            Requirement(
                what="configuration, tokenizer and preprocessing",
                size="4 MB",
                licence="MIT",
                source=f"hub {_CLIP_H14}",
                option="--with hps.processor=FOLDER",
            ),
        ),
    ),
)


def entries() -> dict[str, Entry]:
    """All that this installation has, by name."""
    found = {entry.name: entry for entry in _OWN}
    for module in _MODULES:
        try:
            entry = importlib.import_module(module).ENTRY
        except ModuleNotFoundError as error:
            if error.name is None or not module.startswith(error.name):
                raise  # it is there, and something that it needs is not
            continue
        found[entry.name] = entry
    return found
