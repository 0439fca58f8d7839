"""One picture to show around: the same prompts and seeds, a row for each model and NFE."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from twinflow.evaluation.results import EvaluationRow, EvaluationTable
from twinflow.report.text import score

INK, RIGHT, WRONG = "#222222", "#1a7f37", "#b3261e"


def write_comparison(
    folder: Path, table: EvaluationTable, *, shown: Sequence[tuple[str, int]], columns: int = 8
) -> Path:
    """Write ``folder/comparison.png`` from the pictures that an evaluation left in ``folder``.

    ``shown``: (model, NFE) of the rows, top down. The columns are spread evenly over the pictures kept, hence
    over the tasks; nothing is picked by hand. A green or red line under a picture says whether it is right.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    rows = [row for model, nfe in shown if (row := table.row(model, nfe)) is not None]
    count = min(columns, *(len(row.samples) for row in rows))
    if count == 0:
        raise ValueError(f"the evaluation in {folder} kept no pictures to compare")
    places = [(2 * i + 1) * len(rows[0].samples) // (2 * count) for i in range(count)]
    figure, axes = pyplot.subplots(
        len(rows), count, figsize=(1.35 * count + 1.6, 1.35 * len(rows) + 0.7), squeeze=False
    )
    for line, row in zip(axes, rows):
        for axis, place in zip(line, places):
            sample = row.samples[place]
            with Image.open(folder / sample["file"]) as image:
                axis.imshow(image.convert("RGB"), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            for side, spine in axis.spines.items():
                spine.set_visible(side == "bottom")
                spine.set_color(RIGHT if sample["correct"] else WRONG)
                spine.set_linewidth(3)
        line[0].set_ylabel(_label(row), rotation=0, ha="right", va="center", fontsize=10, color=INK)
    for axis, place in zip(axes[0], places):
        prompt = rows[0].samples[place]["prompt"].removeprefix("a photo of ")
        axis.set_title(textwrap.fill(prompt, 17), fontsize=8, color=INK)
    figure.tight_layout(pad=0.6, h_pad=0.4, w_pad=0.3)
    file = folder / "comparison.png"
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return file


def _label(row: EvaluationRow) -> str:
    evaluations = "evaluation" if row.nfe == 1 else "evaluations"
    return f"{row.model}\n{row.nfe} {evaluations}\nscore {score(row.overall, 2)}"
