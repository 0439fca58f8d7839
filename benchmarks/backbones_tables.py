"""The tables of docs/backbones.md, of what backbones.py has measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS, DOCS = ROOT / "benchmarks/results/backbones.json", ROOT / "docs/backbones.md"
STEPS = (1, 2, 4)


def table(rows: dict[str, Any]) -> str:
    heads = [
        *("family", "fields", "full", "LoRA", "draws", "bake,&nbsp;1/2/4", "in&nbsp;fp64", "LoRA&nbsp;file"),
        *("slim", "one&nbsp;file", "ComfyUI&nbsp;LoRA"),
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, row in rows.items():
        exact = max(row["bake_fp64"].values())
        bake = " / ".join(f"{row['bake'][str(nfe)]:.0e}" for nfe in STEPS)
        lines.append(
            f"| `{name}` {row['pipeline'].removesuffix('Pipeline')} | {row['field']:.0e} | {_moved(row['full'])} | "
            f"{_moved(row['lora'])} | {row['kind']} | {bake} | {exact:.0e} | {row['lora_file']:.0e} | "
            f"{_slim(row['slim'])} | {_single(row['single_file'])} | {_comfyui(row['comfyui'])} |"
        )
    return "\n".join(lines)


def sizes(rows: dict[str, Any]) -> str:
    lines = ["| model | parameters | slim | |", "|---|---|---|---|"]
    real = [row["slim"]["real"] for row in rows.values() if "real" in row["slim"]]
    for size in sorted(real, key=lambda size: size["kept"] / size["parameters"]):
        share = 1 - size["kept"] / size["parameters"]
        lines.append(
            f"| {size['model']} | {size['parameters'] / 1e9:.2f} B | {size['kept'] / 1e9:.2f} B | -{share:.1%} |"
        )
    return "\n".join(lines)


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
    text = DOCS.read_text()
    for mark, made in (("families", table(rows)), ("sizes", sizes(rows))):
        before, rest = text.split(f"<!-- {mark} -->", 1)
        _, after = rest.split(f"<!-- /{mark} -->", 1)
        text = f"{before}<!-- {mark} -->\n{made}\n<!-- /{mark} -->{after}"
    DOCS.write_text(text)
