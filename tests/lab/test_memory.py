"""What is planned of a method's memory is what a real run of it holds."""

from __future__ import annotations

import json
from pathlib import Path

from twinflow.lab import load_lab
from twinflow.lab.memory import planned
from twinflow.launch import build_trainer
from twinflow.planner import Backbone, Setup, gpu_named

RECIPES = Path(__file__).parents[2] / "recipes"
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
CHANGES = ["run.data.length=4", "run.data.encode_batch=4", "run.train.batch=2", "run.checkpoint.every=0"]
# One network; a frozen teacher; a teacher and a second trained network with heads; an average that teaches.
METHODS = ("mean_flow", "twinflow", "twinflow_paper", "dmd2")


def test_a_plan_has_the_parameters_and_states_of_a_real_run(tmp_path: Path) -> None:
    lab = load_lab(RECIPES / "lab_shapeworld.yaml", CHANGES, size="smoke")
    lab = lab.model_copy(update={"methods": {name: lab.methods[name] for name in METHODS}})
    backbone = Backbone.stored("shapeworld-tiny")
    recipes = {m: lab.recipe(m, seed=0, steps=6, folder=tmp_path / m) for m in METHODS}
    setup = Setup.of(
        recipes["mean_flow"], size=backbone.size, frames=backbone.frames, text_tokens=backbone.text_tokens
    )
    plans = {row.method: row for row in planned(lab, backbone, setup, gpu_named("h100-80"))}
    for method, recipe in recipes.items():
        trainer = build_trainer(recipe)
        trainer.run()
        held = trainer.holdings()
        # A run doesn't train the queries of the last block's text, whose gradients are zeros, which tensors without
        # data don't show: 0.7 % of the parameters. Nothing is planned too small.
        for plan, real in (
            (plans[method].parameter_bytes, held.parameter_bytes),
            (plans[method].optimizer_bytes, held.optimizer_bytes),
        ):
            assert real <= plan <= 1.01 * real, method
    ours, three = plans["mean_flow"], plans["dmd2"]
    assert three.copies > ours.copies + 2 - 1e-3


def test_the_table_of_the_documentation_is_that_of_the_results() -> None:
    results = json.loads((RESULTS / "lab_memory.json").read_text())
    rows, measured = results["planned"], results["measured"]
    text = (RECIPES.parent / "docs" / "lab.md").read_text()
    for method, row in rows.items():
        held = measured[method]
        cells = [f"{held[key] / 1e6:.2f} M" for key in ("trained", "frozen")]
        cells += [f"{held['optimizer_bytes'] / 1e6:.1f} MB", f"{row['copies']:.2f}"]
        cells += [f"{row[key] / 2**30:.1f} GiB" for key in ("parameter_bytes", "optimizer_bytes", "peak")]
        assert f"| `{method}` | {' | '.join(cells)}" in text
    named = load_lab(RECIPES / "lab_shapeworld.yaml").methods
    assert set(rows) == {"twinflow_self", *named}
