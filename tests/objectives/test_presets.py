"""Presets: what the documentation's table says, complete, and none of our defaults'."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

import pytest
import yaml

from twinflow.objectives import TwinFlow
from twinflow.objectives.presets import PRESETS, preset

METHOD = Path(__file__).parents[2] / "docs" / "method.md"
ROLES = ("one_step", "tangent", "any_step", "fake", "consistency")
NAMES = [name for name in PRESETS["twinflow"] if name.startswith("paper")]


def documented() -> dict[str, dict[str, str]]:
    """The cells of the table of section 7, by preset and setting."""
    lines = METHOD.read_text().partition("### The authors' settings, by name")[2].splitlines()
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    names = [cell.strip("`") for cell in rows[0][1:]]
    settings = {row[0].partition("`")[2].partition("`")[0]: row[1:] for row in rows[2:]}
    return {name: {key: cells[i] for key, cells in settings.items()} for i, name in enumerate(names)}


def test_the_table_of_the_documentation_has_every_preset_and_says_what_it_is() -> None:
    table = documented()
    assert list(table) == NAMES
    for name, cells in table.items():
        assert set(cells) == {"order", "guidance", "teacher", "rectify", "image_free", "roles"}
        settings = preset("twinflow", name)
        shares = dict(zip(ROLES, map(float, cells.pop("roles").split(":")), strict=True))
        assert settings["roles"] == shares
        assert {key: settings[key] for key in cells} == {
            key: yaml.safe_load(cell) for key, cell in cells.items()
        }


# The class defaults of the authors, and constants that they write into their code.
COMMON = {
    "delta": 0.01,
    "clamp": 1.0,
    "rectify_clamp": 1.0,
    "nodes": "uniform",
    "any_step_span": 1.0,
    "tangent_gap": 0.05,
    "velocity": "data",
    "longest_jump": None,
    "guidance_range": [0.0, 1.0],
    "loss": "barron",
    "barron_alpha": 1.0,
    "barron_c": 0.001,
    "weighting": "tangent",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_sets_everything_so_that_our_defaults_do_not_matter(name: str) -> None:
    settings = preset("twinflow", name)
    # lockstep says how the networks are called, not what is computed.
    assert set(settings) == {f.name for f in fields(TwinFlow) if f.init} - {"lockstep"}
    assert {key: settings[key] for key in COMMON} == COMMON
    built = TwinFlow(**settings)
    assert asdict(TwinFlow(**preset("twinflow", name))) == asdict(built)
    assert built.time.kind == "uniform"
    settings["roles"]["fake"] = 9.0  # one's own copy
    assert preset("twinflow", name)["roles"]["fake"] == 1.0


def test_the_scales_of_guidance() -> None:
    scales = {name: TwinFlow(**preset("twinflow", name)).guidance_scale for name in NAMES}
    assert scales == pytest.approx(dict.fromkeys(NAMES, 5.0) | {"paper_image_free": 4.0})


def test_tuned_is_what_the_comparison_trains_with_and_says_everything() -> None:
    lab = yaml.safe_load((METHOD.parents[1] / "recipes" / "lab_shapeworld.yaml").read_text())
    assert lab["methods"]["twinflow"]["objective"] == {"name": "twinflow", "preset": "tuned"}
    settings = preset("twinflow", "tuned")
    assert set(settings) == set(preset("twinflow", "paper"))
    changed = {key: value for key, value in settings.items() if value != preset("twinflow", "paper")[key]}
    assert changed == {"teacher": "frozen", "guidance": 1.5, "clamp": None, "longest_jump": 0.25}
    assert asdict(TwinFlow(**settings)) == asdict(TwinFlow())  # our defaults
