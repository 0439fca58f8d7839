"""The table of docs/scaling.md of what gpu_20b.py has measured: ``python benchmarks/gpu_20b_table.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pages import fill, markdown

ROOT = Path(__file__).resolve().parents[1]
RESULTS, DOCS = ROOT / "benchmarks/results/gpu_20b.json", ROOT / "docs/scaling.md"
OFFLOADED = ROOT / "benchmarks/results/gpu_20b_offload.json"  # another run, of one case with --offload
NAMES = {
    "adamw4bit_512": "4-bit AdamW, 512 px",
    "adamw4bit_1024": "4-bit AdamW, 1024 px",
    "offloaded": "the same, `train.offload`",
    "adamw4bit_1024_compiled": "4-bit AdamW, 1024 px, `train.compile: blocks`",
    "adafactor_512": "Adafactor, 512 px",
    "adafactor_1024": "Adafactor, 1024 px",
    "flow_matching_512": "flow matching, 4-bit AdamW, 512 px",
}


def table(cases: dict[str, Any]) -> str:
    heads = ("step", "peak, GiB (plan)", "seconds (floor)", "of the GPU", "loss, first and last")
    rows = [_row(label, cases[name]) for name, label in NAMES.items()]
    rows.insert(
        1, _row("the same, the released code's calls", cases["adamw4bit_512"]["reference"], losses=False)
    )
    return markdown(heads, rows)


def _row(label: str, case: dict[str, Any], *, losses: bool = True) -> tuple[str, ...]:
    floor = f" ({case['planned_floor_seconds']:.2f})" if losses else ""
    return (
        label,
        f"{case['allocated_gib']:.1f} ({case['planned_allocated_gib']:.1f})",
        f"{case['step_seconds']:.2f}{floor}",
        f"{case['mfu']:.0%}",
        f"{case['losses'][0]:.3f} to {case['losses'][-1]:.3f}" if losses else "",
    )


def cases() -> dict[str, Any]:
    offloaded = json.loads(OFFLOADED.read_text())["cases"]["adamw4bit_1024"]
    return json.loads(RESULTS.read_text())["cases"] | {"offloaded": offloaded}


def main() -> None:
    fill(DOCS, measured=table(cases()))


if __name__ == "__main__":
    main()
