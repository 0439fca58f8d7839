"""A whole comparison, on the embedded model: three steps a run, every part real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from twinflow.errors import TwinflowError
from twinflow.lab import load_lab, run_lab
from twinflow.lab.leaderboard import Leaderboard
from twinflow.lab.outcome import Outcome
from twinflow.lab.run import _Comparison, _same_method
from twinflow.lab.steps import probe_steps, steps_within
from twinflow.objectives import DMD2, ProgressiveDistillation
from twinflow.objectives.presets import preset

from .comparisons import METHODS, comparison
from .outcomes import outcome

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.slow
def test_a_comparison_from_start_to_leaderboard_and_again(tmp_path: Path) -> None:
    one = {"twinflow": METHODS["twinflow"]}
    search = {"keys": {"optimizer.lr": [1e-4, 1e-3]}, "share": 0.4}
    file = comparison(tmp_path, methods=one, seeds=[0], search=search)
    run_lab(load_lab(file))
    folder = tmp_path / "lab"
    done = (folder / "twinflow" / "seed_0" / "outcome.json").read_bytes()
    assert len(json.loads((folder / "twinflow" / "search.json").read_text())["tried"]) == 2

    # More methods and seeds; what is done stays as it is.
    board = run_lab(load_lab(comparison(tmp_path, search=search)))
    assert board is not None
    assert (folder / "twinflow" / "seed_0" / "outcome.json").read_bytes() == done
    assert [(s.method, s.nfe, s.runs, s.diverged) for s in board.standings] == [
        (name, nfe, 2, 0) for name in METHODS for nfe in (1, 2)
    ]
    for standing in board.standings:
        assert standing.costs["images"] == 12  # the budget
        assert standing.costs["steps"] == 3
        assert standing.costs["flops"] > 0
        assert 0 <= standing.overall <= 1
        assert standing.frechet > 0
    held = {s.method: s.holdings for s in board.standings}
    assert held["dmd2"]["trained"] > 2 * held["twinflow"]["trained"]
    assert board.base["rows"][0]["nfe"] == 4
    text = (folder / "leaderboard.md").read_text()
    assert all(f"| {name} |" in text for name in METHODS)
    assert json.loads((folder / "leaderboard.json").read_text())["standings"][0]["method"] == "twinflow"
    assert (folder / "report.html").is_file()
    page = (folder / "leaderboard.html").read_text()
    assert all(f"{name} at 1 NFE" in page for name in METHODS)
    for name in METHODS:  # the search's share of the budget
        assert 0 < board.partial[name]["flops"] < board.standing(name, 1).costs["flops"]

    with pytest.raises(TwinflowError, match="holds another comparison: its budget"):
        run_lab(load_lab(comparison(tmp_path, search=search), size="small"))
    changed = METHODS | {"dmd2": {"objective": {"name": "dmd2"}}}
    with pytest.raises(TwinflowError, match=r"holds another methods\.dmd2"):
        run_lab(load_lab(comparison(tmp_path, search=search, methods=changed)))


@pytest.mark.slow
def test_a_rate_that_diverges_at_once_is_not_chosen(tmp_path: Path) -> None:
    """Neither is the comparison given up: not even the steps that measure its cost come to an end."""
    search = {"keys": {"optimizer.lr": [1e30, 1e-4]}, "share": 1.0}
    evaluation = {"images_per_task": 1, "nfe": [1], "base_nfe": 1}
    only = {"twinflow": METHODS["twinflow"]}
    file = comparison(tmp_path, methods=only, search=search, evaluation=evaluation)
    board = run_lab(load_lab(file))
    assert board is not None
    tried = json.loads((tmp_path / "lab" / "twinflow" / "search.json").read_text())
    assert tried["chosen"] == {"optimizer.lr": 1e-4}
    first = Outcome.load(tmp_path / "lab" / "twinflow" / "search_0" / "outcome.json")
    assert first.status == "diverged"
    assert "not finite" in first.message
    assert first.costs["steps"] >= 1
    assert (board.standings[0].runs, board.standings[0].diverged) == (2, 0)
    # The search had the whole budget: its best run is that of the seed, and is not made again.
    method = tmp_path / "lab" / "twinflow"
    assert (method / "seed_0" / "outcome.json").read_bytes() == (
        method / "search_1" / "outcome.json"
    ).read_bytes()
    assert not (method / "seed_0" / "run").exists()
    # Its number of steps is that of the other seeds, too, and is not measured again.
    assert not (method / "seed_1" / "probe").exists()
    assert (
        Outcome.load(method / "seed_1" / "outcome.json").costs["steps"]
        == json.loads((method / "search_1" / "steps.json").read_text())["steps"]
    )
    assert (tmp_path / "lab" / "twinflow_nfe1").is_dir()
    assert not board.partial
    assert "twinflow at 1 NFE" in (tmp_path / "lab" / "leaderboard.html").read_text()


@pytest.mark.parametrize(("name", "methods"), [("lab_shapeworld", 13), ("lab_ablations", 21)])
def test_the_recipes_of_the_repository_are_valid_at_every_size(name: str, methods: int) -> None:
    for size in (None, "smoke", "hour", "gpu"):
        lab = load_lab(RECIPES / f"{name}.yaml", size=size)
        assert len(lab.methods) == methods
        assert {lab.recipe(name, seed=1, steps=5, folder=Path("x")).train.seed for name in lab.methods} == {1}


def test_methods_have_what_their_papers_train_with() -> None:
    """Dropped captions for MeanFlow's unconditional half; a warm-up of the tangent that ends within the run."""
    lab = load_lab(RECIPES / "lab_shapeworld.yaml", size="hour")
    recipes = {m: lab.recipe(m, seed=0, steps=300, folder=Path("x")) for m in lab.methods}
    assert {m: r.caption_dropout for m, r in recipes.items() if r.caption_dropout > 0} == {"mean_flow": 0.1}
    for name in ("scm", "sana_sprint"):
        assert recipes[name].objective["tangent_warmup"] == 100


def test_ablations_start_from_the_setting_of_the_comparison_and_change_one_thing_each() -> None:
    def recipes(name: str) -> dict[str, Any]:
        lab = load_lab(RECIPES / f"{name}.yaml")
        return {m: lab.recipe(m, seed=0, steps=99, folder=Path("x")).model_dump() for m in lab.methods}

    ours, rows = recipes("lab_shapeworld")["twinflow"], recipes("lab_ablations")
    assert rows.pop("twinflow") == ours
    for name, row in rows.items():
        assert [key for key in row if row[key] != ours[key]], f"{name} is ours"
        # The guidance follows the teacher, whose number for one scale is another; and without the fake trajectory there
        # is nothing to rectify with.
        companions = {"no_fake": 1, "teacher_self": 1, "teacher_ema": 1, "image_free": 1}
        changed = [key for key in ours["objective"] if row["objective"][key] != ours["objective"][key]]
        assert len(changed) <= 1 + companions.get(name, 0), f"{name} changes {changed}"


def test_a_diverged_run_is_not_taken_for_the_cost_of_a_whole_one() -> None:
    whole, broken = outcome("dmd", 0, 0.9), outcome("dmd", 1, None)
    broken.costs |= {"steps": 1, "flops": 1e11}
    broken.per_image = {"forwards": 2.0, "backwards": 1.0}

    def costs(*runs: Outcome) -> tuple[float, float, float]:
        board = Leaderboard.of(outcome("base", 0, 0.8), runs, compared_with="dmd", facts={}, nfe=[1])
        standing = board.standings[0]
        return standing.costs["steps"], standing.costs["flops"], standing.per_image["forwards"]

    assert costs(whole, broken) == (3, 1e12, 4.0)
    assert costs(broken) == (1, 1e11, 2.0)  # there is no other


def claim(file: Path) -> None:
    _Comparison(load_lab(file), Console(quiet=True))._claim()


def test_a_method_that_was_left_out_for_a_while_is_still_known(tmp_path: Path) -> None:
    """Its outcomes lie in the folder: with other settings they would be taken for the new ones'."""
    claim(comparison(tmp_path))
    claim(comparison(tmp_path, methods={"twinflow": METHODS["twinflow"]}))
    changed = METHODS | {"dmd2": {"objective": {"name": "dmd2"}}}
    with pytest.raises(TwinflowError, match=r"holds another methods\.dmd2"):
        claim(comparison(tmp_path, methods=changed))
    claim(comparison(tmp_path))


def test_the_first_seed_of_a_comparison_stays_the_first(tmp_path: Path) -> None:
    """The search was made with it, and the pictures are its: seeds may be added behind it alone."""
    claim(comparison(tmp_path, seeds=[0]))
    claim(comparison(tmp_path, seeds=[0, 1]))
    with pytest.raises(TwinflowError, match="first of its seeds is 0"):
        claim(comparison(tmp_path, seeds=[1, 0]))


def test_a_folder_of_a_version_with_fewer_keys_is_refused_with_a_word(tmp_path: Path) -> None:
    claim(comparison(tmp_path))
    file = tmp_path / "lab" / "lab.json"
    former = json.loads(file.read_text())
    former.pop("search")
    file.write_text(json.dumps(former))
    with pytest.raises(TwinflowError, match="holds another comparison: its search is None"):
        claim(comparison(tmp_path))


def test_what_the_search_chooses_no_method_may_set(tmp_path: Path) -> None:
    """The search would replace it without a word."""
    methods = {"twinflow": METHODS["twinflow"] | {"recipe": {"optimizer": {"lr": 1e-5}}}}
    search = {"keys": {"optimizer.lr": [1e-4, 1e-3]}}
    with pytest.raises(TwinflowError, match=r"methods\.twinflow.*optimizer\.lr.*search"):
        load_lab(comparison(tmp_path, methods=methods, search=search))
    load_lab(comparison(tmp_path, methods=methods))


@pytest.mark.parametrize("amount", [40.0, 353.7, 5000.0])
def test_a_budget_is_good_for_all_stages_whatever_their_costs(amount: float) -> None:
    """The guided stage costs 1.4 of the others, and is a seventh of a run, but less of the few steps of a probe."""
    objective = ProgressiveDistillation(start_steps=16, guidance=1.5)
    cost = {"guided": 1.4, "student": 1.0}

    def spent(steps: int) -> float:
        return sum(cost[objective.begin(step, steps).name] for step in range(steps))

    steps = steps_within(objective, cost, amount)
    assert spent(steps) <= amount < spent(steps + 1)


def test_a_probe_has_every_phase() -> None:
    assert probe_steps(ProgressiveDistillation(start_steps=16, guidance=1.5)) == 12
    assert probe_steps(DMD2()) == 12
    assert probe_steps(DMD2(critic_steps=30)) == 48  # the student's turn is the 31st step


def test_a_method_is_the_same_when_a_preset_names_its_settings() -> None:
    named = {"objective": {"name": "twinflow", "preset": "paper", "guidance": 0.6}, "recipe": {}}
    written = {
        "objective": {"name": "twinflow", **preset("twinflow", "paper"), "guidance": 0.6},
        "recipe": {},
    }
    assert _same_method(named, written)
    assert not _same_method(named, written | {"recipe": {"optimizer": {"lr": 1e-3}}})
    assert not _same_method(named, {"objective": {"name": "twinflow", "preset": "paper"}, "recipe": {}})
    assert not _same_method({"objective": {"name": "no longer there"}, "recipe": {}}, named)


def test_the_leaderboard_is_the_mean_over_seeds_without_the_diverged(tmp_path: Path) -> None:
    base = outcome("base", 0, 0.8)
    runs = [
        outcome("twinflow", 0, 0.6),
        outcome("twinflow", 1, 0.8),
        outcome("dmd", 0, 0.9, held=360),
        outcome("dmd", 1, None, held=360),
        outcome("scm", 0, None),
    ]
    board = Leaderboard.of(base, runs, compared_with="twinflow", facts={"budget": "3 steps"}, nfe=[1])
    twinflow, dmd, scm = board.standings
    assert (twinflow.overall, dmd.overall, scm.overall) == (pytest.approx(0.7), 0.9, None)
    assert (twinflow.spread, dmd.spread) == (pytest.approx(0.02**0.5), None)
    assert twinflow.ratio == pytest.approx(0.875)
    assert (twinflow.frechet, dmd.frechet, scm.frechet) == (1.0, 0.0, None)
    assert [(s.runs, s.diverged) for s in board.standings] == [(2, 0), (2, 1), (1, 1)]
    assert [s.memory_ratio for s in board.standings] == [1.0, 3.0, 1.0]
    assert [s.tasks.get("counting") for s in board.standings] == [pytest.approx(0.7), 0.9, None]
    assert twinflow.task_spreads == {"counting": pytest.approx(0.02**0.5)}
    assert "| twinflow | 0.700 ± 0.141 |" in board.markdown().split("### 1 NFE, by task")[1]
    lines = [line for line in board.markdown().splitlines() if line.startswith("| ")]
    ranking = [line.split(" | ")[0][2:] for line in lines[1:4]]
    assert ranking == ["dmd", "twinflow", "scm"]
    for run in runs:
        run.save(tmp_path / "o.json")
        assert Outcome.load(tmp_path / "o.json") == run
