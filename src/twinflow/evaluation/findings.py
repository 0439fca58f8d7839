"""What a table keeps of the pictures that a benchmark found right or wrong, for its page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twinflow.evaluation.benchmark import Finding
from twinflow.evaluation.pictures import read_picture


def spread(findings: Sequence[Finding], count: int) -> list[Finding]:
    """``count`` of them at even distances: benchmarks go task by task, and each should be seen."""
    total = len(findings)
    return (
        [findings[i * total // count] for i in range(min(count, total))] if total > count else list(findings)
    )


def sample(finding: Finding, prefix: str) -> dict[str, Any]:
    return {"prompt": finding.prompt, "file": f"{prefix}/{finding.file}", "correct": finding.correct}


def failure(finding: Finding, prefix: str, pictures: Path) -> dict[str, Any]:
    size = read_picture(pictures / finding.file).size
    entry = sample(finding, prefix) | {"reason": finding.reason, "size": list(size)}
    if finding.score is not None:
        entry["score"] = finding.score
    if finding.boxes is not None:
        entry["boxes"] = [{"label": name, "box": box, "score": sure} for name, box, sure in finding.boxes]
    return entry
