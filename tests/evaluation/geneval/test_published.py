"""Breakdowns that people printed with the official ``summary_scores.py``, from our pipeline of rows to a summary."""

from __future__ import annotations

from collections import Counter

import pytest

from evaluation.geneval.lines import SIX, prompt_file
from twinflow.evaluation.geneval import GenEval
from twinflow.evaluation.scoring import ImageResult, Verdict

# Correct pictures of single_object, two_object, counting, colors, position, color_attr; pictures of a prompt;
# the printed overall score and percentage of correct images.
PUBLISHED = {
    "Tongyi-MAI/Z-Image#142": ((314, 349, 245, 328, 158, 226), 4, 0.74342, 73.24),
    "ZiyuGuo99/Image-Generation-CoT#24": ((307, 312, 150, 313, 197, 212), 4, 0.67849, 67.41),
    "djghosh13/geneval#21": (
        (10, 1, 1, 4, 0, 0),
        1,
        0.03169,
        2.89,
    ),  # a detector with the wrong configuration
}

PROMPTS = (80, 99, 80, 94, 100, 100)  # of each task, as GenEval has them


@pytest.mark.parametrize("source", PUBLISHED)
def test_published_breakdowns_reproduce_to_five_digits(source, tmp_path):
    correct, per_prompt, overall, percent = PUBLISHED[source]
    lines = [
        line | {"prompt": f"{line['prompt']}, number {i}"}
        for line, count in zip(SIX, PROMPTS)
        for i in range(count)
    ]
    suite = GenEval(metadata=prompt_file(*lines), images_per_prompt=per_prompt)
    left = Counter(dict(zip((line["tag"] for line in SIX), correct)))
    rows = []
    for work in suite.prompts():
        for path in work.paths:
            passed = left[work.metadata["tag"]] > 0
            left[work.metadata["tag"]] -= 1
            verdict = Verdict(correct=passed, strict=False, reason="")
            rows.append(ImageResult(filename=path, metadata=work.metadata, verdict=verdict))
    suite.report(rows).write_jsonl(tmp_path / "results.jsonl")
    report = suite.read(tmp_path / "results.jsonl")
    assert round(report.official.overall, 5) == overall
    assert round(100 * report.official.images.value, 2) == percent
    assert report.official.prompts.total == 553
