"""A small comparison on the embedded model, as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

METHODS = {
    "twinflow": {"objective": {"name": "twinflow", "teacher": "self", "guidance": 0.6}},
    "dmd2": {"objective": {"name": "dmd2", "guidance": 1.5, "critic_steps": 1, "times": [1.0, 0.5]}},
    "progressive": {
        "objective": {"name": "progressive_distillation", "start_steps": 2},
        "sampler": {"style": "any"},
    },
}


def comparison(tmp_path: Path, **changes: Any) -> Path:
    raw = {
        "run": {
            "model": {"path": "shapeworld-tiny"},
            "data": {"kind": "shapeworld", "length": 12, "encode_batch": 12},
            "train": {"batch": 4},
            "log": {"every": 1, "tensorboard": False},
        },
        "methods": METHODS,
        "budget": {"unit": "images", "amount": 12},
        "seeds": [0, 1],
        "evaluation": {"images_per_task": 1, "nfe": [1, 2], "base_nfe": 4},
        "output": str(tmp_path / "lab"),
        "sizes": {"small": ["budget.amount=8"]},
        **changes,
    }
    file = tmp_path / "lab.yaml"
    file.write_text(yaml.safe_dump(raw, sort_keys=False))
    return file
