"""Ask mPLUG, the official judge of DPG-Bench, about a folder of grids; run in an environment of its own.

    python -m venv mplug && mplug/bin/pip install "transformers==4.49.0" "torch==2.6.0" "torchvision==0.21.0" \\
        "modelscope==1.40.2" "timm==1.0.31" "addict==2.4.0" "pillow==11.1.0"
    mplug/bin/python tools/dpg_mplug.py GRIDS dpg_bench.csv answers.jsonl

It needs nothing of twinflow: modelscope's mPLUG cannot be built with the transformers that twinflow needs. twinflow
reads the answers with ``DPGBench(questions=…).read("answers.jsonl")``. Pictures that have answers are not asked again,
unless their grid has changed.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image

MODEL = "damo/mplug_visual-question-answering_coco_large_en"
JUDGE = "mPLUG (modelscope)"


def ask_folder(
    grids: Path, questions: Path, output: Path, vqa: Callable[[Image.Image, str], str], *, pictures: int = 4
) -> None:
    """Append an answer to every question about every picture to ``output``."""
    done: set[tuple[str, int, str, str]] = set()
    if output.exists():
        lines = output.read_bytes()
        output.write_bytes(lines[: lines.rfind(b"\n") + 1])  # without a line that was cut off
        for line in output.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            done.add((row["item_id"], row["picture"], row["question"], row["grid"]))
    by_item: dict[str, list[dict[str, str]]] = {}
    with questions.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            by_item.setdefault(row["item_id"], []).append(row)
    files = {
        path.stem: path
        for path in grids.iterdir()
        if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")
    }
    if missing := [item for item in by_item if item not in files]:
        raise SystemExit(
            f"{grids} lacks {len(missing)} of {len(by_item)} grids, such as {missing[0]}: draw them"
        )
    with output.open("a", encoding="utf-8") as out:
        for item, rows in by_item.items():
            digest = hashlib.sha256(files[item].read_bytes()).hexdigest()[:16]
            grid = Image.open(files[item]).convert("RGB")
            per_side = 2 if pictures == 4 else 1
            width, height = grid.width // per_side, grid.height // per_side
            for picture in range(pictures):
                x, y = picture % per_side * width, picture // per_side * height
                cell = grid.crop((x, y, x + width, y + height))
                for row in rows:
                    question = row["question_natural_language"].strip()
                    if (item, picture, question, digest) in done:
                        continue
                    line = {
                        "item_id": item,
                        "picture": picture,
                        "proposition_id": int(row["proposition_id"]),
                        "question": question,
                        "answer": vqa(cell, question),
                        "judge": JUDGE,
                        "grid": digest,
                    }
                    out.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grids", type=Path, help="folder of <item_id>.png")
    parser.add_argument("questions", type=Path, help="dpg_bench.csv")
    parser.add_argument("output", type=Path, help="answers, one JSON object a line")
    parser.add_argument("--pictures", type=int, choices=(1, 4), default=4, help="pictures in a grid")
    arguments = parser.parse_args()

    from modelscope.pipelines import pipeline
    from modelscope.utils.constant import Tasks

    mplug = pipeline(Tasks.visual_question_answering, model=MODEL)
    ask_folder(
        arguments.grids,
        arguments.questions,
        arguments.output,
        lambda image, question: mplug({"image": image, "question": question})["text"],
        pictures=arguments.pictures,
    )


if __name__ == "__main__":
    main()
