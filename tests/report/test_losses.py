"""Loss curves are read from what trainers write, and from what is left of it."""

from __future__ import annotations

from twinflow.report.losses import Curve, read_losses


def test_flat_and_nested_roles(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(
        '{"step": 1, "loss": 3, "loss/one_step": 2.0, "metric/delta_v_rms": 9, "learning_rate": 1e-4}\n'
        '{"step": 2, "loss": 2, "losses": {"one_step": 1.0, "fake": 4.0}}\n'
    )
    curves = read_losses(file)
    assert set(curves) == {"loss", "one_step", "fake"}
    assert curves["one_step"] == Curve(steps=[1, 2], values=[2.0, 1.0])
    assert curves["fake"] == Curve(steps=[2], values=[4.0])


def test_torn_strange_and_non_finite_lines_are_left_out(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 1}\n[1]\n\n{"loss": 5}\n{"step": 2, "loss": NaN}\n{"step": 3, "lo')
    assert read_losses(file) == {"loss": Curve(steps=[1], values=[1.0])}


def test_smoothing_keeps_a_constant_and_the_steps():
    curve = Curve(steps=[1, 2, 3, 4], values=[2.0] * 4)
    assert curve.smoothed(3) == curve
    assert Curve(steps=[1, 2, 3], values=[0.0, 3.0, 6.0]).smoothed(3).values == [1.5, 3.0, 4.5]
