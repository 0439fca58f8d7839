"""The tables of docs/backbones.md, of what backbones.py has measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pages import fill, markdown

ROOT = Path(__file__).resolve().parents[1]
RESULTS, DOCS = ROOT / "benchmarks/results/backbones.json", ROOT / "docs/backbones.md"
STEPS = (1, 2, 4)


def table(rows: dict[str, Any]) -> str:
    heads = [
        *("family", "fields", "full", "LoRA", "draws", "bake,&nbsp;1/2/4", "in&nbsp;fp64", "LoRA&nbsp;file"),
        *("slim", "one&nbsp;file", "ComfyUI&nbsp;LoRA"),
    ]
    lines = []
    for name, row in rows.items():
        exact = max(row["bake_fp64"].values())
        bake = " / ".join(f"{row['bake'][str(nfe)]:.0e}" for nfe in STEPS)
        lines.append(
            (
                *(f"`{name}` {row['pipeline'].removesuffix('Pipeline')}", f"{row['field']:.0e}"),
                *(_moved(row["full"]), _moved(row["lora"]), row["kind"], bake, f"{exact:.0e}"),
                *(f"{row['lora_file']:.0e}", _slim(row["slim"]), _single(row["single_file"])),
                _comfyui(row["comfyui"]),
            )
        )
    return markdown(heads, lines)


def sizes(rows: dict[str, Any]) -> str:
    real = [row["slim"]["real"] for row in rows.values() if "real" in row["slim"]]
    lines = []
    for size in sorted(real, key=lambda size: size["kept"] / size["parameters"]):
        share = 1 - size["kept"] / size["parameters"]
        whole, kept = f"{size['parameters'] / 1e9:.2f} B", f"{size['kept'] / 1e9:.2f} B"
        lines.append((size["model"], whole, kept, f"-{share:.1%}"))
    return markdown(("model", "parameters", "slim", ""), lines)


def _moved(run: dict[str, Any]) -> str:
    fine = run["finite"] and not run["frozen_moved"]
    return f"{run['moved']}/{run['trained']}" if fine else "**fails**"


def _slim(row: dict[str, Any]) -> str:
    if "refused" in row:
        return "no [1]"
    return f"{row['kept']:.0%} left" + (f", {row['error']:.0e}" if "error" in row else "")


def _single(row: dict[str, Any]) -> str:
    if "refused" in row:
        return "no [2]"
    return ("exact" if row["same"] else "**differs**") + (" [3]" if row["at"] != "tiny" else "")


def _comfyui(row: dict[str, Any]) -> str:
    return "no [4]" if "refused" in row else f"{row['error']:.0e}" if "error" in row else "[3]"


def write_docs(rows: dict[str, Any]) -> None:
    fill(DOCS, families=table(rows), sizes=sizes(rows))
