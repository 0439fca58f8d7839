"""What may stand in one table: scores of one protocol, and of one model under one name."""

from __future__ import annotations

import pytest
from PIL import Image

from twinflow.assets import copy_model
from twinflow.errors import TwinflowError
from twinflow.evaluation import runner
from twinflow.evaluation.results import EvaluationTable
from twinflow.evaluation.shapeworld_benchmark import ShapeWorldBenchmark

from .evaluated import BENCHMARK, evaluate


def test_two_protocols_do_not_share_a_table(tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    for picture in BENCHMARK.pictures:
        Image.new("RGB", (32, 32), "gray").save(folder / picture.file)
    assert evaluate(tmp_path / "out", f"gray={folder}").rows[0].overall == 0
    other = ShapeWorldBenchmark(images_per_task=2, seed=1)
    with pytest.raises(TwinflowError, match=r"another protocol.*prompts"):
        evaluate(tmp_path / "out", f"gray={folder}", benchmark=other)
    assert evaluate(tmp_path / "out", f"gray={folder}", benchmark=other, overwrite=True).rows[0].nfe == 0


def test_a_name_in_a_table_stands_for_one_model(tmp_path):
    """A model that was trained on and kept its name does not share a line with what it was before."""
    first, second = (copy_model("shapeworld-tiny", tmp_path / name) for name in ("first", "second"))
    (second / "trained_on.json").write_text("{}")  # another model, as far as anyone can tell
    small = ShapeWorldBenchmark(images_per_task=1)
    out = tmp_path / "out"
    kept = evaluate(out, f"mine={first}", benchmark=small)
    with pytest.raises(TwinflowError, match=r"another model called 'mine', at 2 NFE.*--nfe"):
        evaluate(out, f"mine={second}", benchmark=small, nfe=[1])
    assert EvaluationTable.load(out / "table.json").rows == kept.rows
    evaluate(out, f"mine={first}", benchmark=small, nfe=[4])  # itself at another NFE is welcome
    assert [row.nfe for row in EvaluationTable.load(out / "table.json").rows] == [1, 2, 4]
    table = evaluate(out, f"mine={second}", benchmark=small, nfe=[4, 2, 1])
    assert [row.nfe for row in table.rows] == [4, 2, 1]
    assert len({row.identity for row in table.rows}) == 1 != {kept.rows[0].identity}


def test_a_table_that_goes_on_elsewhere_says_that_its_times_do_not_compare(tmp_path, monkeypatch):
    small = ShapeWorldBenchmark(images_per_task=1)
    assert evaluate(tmp_path, "base=shapeworld-tiny", benchmark=small, nfe=[1]).notes == []
    facts = runner.run_facts() | {"machine": "another one"}
    monkeypatch.setattr(runner, "run_facts", lambda: facts)
    (note,) = evaluate(tmp_path, "base=shapeworld-tiny", benchmark=small, nfe=[2]).notes
    assert "another one" in note
    assert evaluate(tmp_path, "base=shapeworld-tiny", benchmark=small, nfe=[2]).notes == [note]
