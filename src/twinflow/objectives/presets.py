"""Settings by name: those that the authors of TwinFlow train with (``docs/method.md`` section 7 has them as a table),
and ``tuned``, what won here over three seeds (``docs/experiments.md``).

>>> TwinFlow(**preset("twinflow", "paper"))                    # doctest: +SKIP
>>> TwinFlow(**preset("twinflow", "paper") | {"guidance": 0.6})  # doctest: +SKIP

Every setting is spelt out, so that a preset stays what it is when our defaults change. Source of the authors': the
configurations and class defaults of their code (github.com/inclusionAI/TwinFlow); where the paper's text differs from
it (nodes of the jumps at random, no clamps), it is the code that made the published models.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

_PAPER: dict[str, Any] = {
    "roles": {"one_step": 1.0, "tangent": 1.0, "any_step": 1.0, "fake": 1.0, "consistency": 0.0},
    "order": 2,
    "longest_jump": None,
    "delta": 0.01,
    "clamp": 1.0,
    "nodes": "uniform",
    "any_step_span": 1.0,
    "tangent_gap": 0.05,
    "velocity": "data",
    "guidance": 0.8,
    "guidance_range": [0.0, 1.0],
    "teacher": "ema",
    "loss": "barron",
    "barron_alpha": 1.0,
    "barron_c": 1e-3,
    "weighting": "tangent",
    "rectify": 0.5,
    "rectify_clamp": 1.0,
    "time": {
        "kind": "uniform",
        "a": 1.0,
        "b": 1.0,
        "mean": 0.0,
        "std": 1.0,
        "shift": 1.0,
        "scale": 1.0,
    },  # Beta(1, 1)
    "image_free": False,
}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "twinflow": {
        # The frozen initial model guides from the first step, to a scale of 2.5; under a LoRA it is there anyway, else
        # it is a second copy, as an average is. Long jumps are compared with short ones; elementwise clamps would
        # make signs of large residuals.
        "tuned": _PAPER | {"teacher": "frozen", "guidance": 1.5, "clamp": None, "longest_jump": 0.25},
        # Full training, as for Stable Diffusion 3.5; the teacher's decay is ema.teacher_decay, 0.99. For OpenUni
        # rectify is 0.75 and the decay 0.999.
        "paper": _PAPER,
        # Full training of Qwen-Image 20B: no copy of the weights.
        "paper_qwen": _PAPER | {"teacher": "self"},
        # LoRA, of order 2 and of order 1. Their network sees one time, t - r/2; ours t and r, in LoRA training too.
        "paper_lora": _PAPER,
        # Consistency rows in the place of any_step ones. For Qwen-Image the teacher is frozen and guidance 4.
        "paper_lora_order_1": _PAPER
        | {
            "order": 1,
            "teacher": "self",
            "roles": {"one_step": 1.0, "tangent": 1.0, "any_step": 0.0, "fake": 1.0, "consistency": 1.0},
        },
        # Prompts alone; OpenUni.
        "paper_image_free": _PAPER
        | {"teacher": "frozen", "guidance": 4.0, "rectify": 0.75, "image_free": True},
    }
}


def preset(objective: str, name: str) -> dict[str, Any]:
    """All settings of the preset ``name`` of the objective that recipes call ``objective``; KeyError without one."""
    return deepcopy(PRESETS[objective][name])
