"""What DPG-Bench needs, told before anything is fetched."""

from __future__ import annotations

from twinflow.evaluation.dpg.questions import URL
from twinflow.evaluation.requirements import Requirement


def requirements() -> tuple[Requirement, ...]:
    return (
        Requirement(
            name="prompts",
            what="1065 prompts, read out of the repository's archive, fetched once",
            size="0.5 MB",
            licence="Apache-2.0",
            source="github.com/TencentQQGYLab/ELLA @ 3c228f1",
            option="prompts",
        ),
        Requirement(
            name="questions",
            what="the questions and their dependencies, dpg_bench.csv",
            size="a few MB",
            licence="Apache-2.0",
            source=URL,
            option="questions",
        ),
        Requirement(
            name="judge (official)",
            what="mPLUG large, in an environment of its own with transformers below 5; its answers are imported",
            size="size not known here; 9 GB of memory to run (model card)",
            licence="Apache-2.0 (model card)",
            source="modelscope: damo/mplug_visual-question-answering_coco_large_en; "
            "its answers: --with dpg.judge=import:FILE",
            optional=True,
        ),
        Requirement(
            name="judge",
            what="a vision language model; 7 billion parameters, for a GPU",
            size="about 17 GB",
            licence="Apache-2.0 (model card)",
            source="Qwen/Qwen2.5-VL-7B-Instruct",
            option="judge",
            optional=True,
        ),
        Requirement(
            name="judge (small)",
            what="BLIP for visual question answering: runs on a CPU, weak on dense questions",
            size="about 1.5 GB",
            licence="BSD-3-Clause (model card)",
            source="Salesforce/blip-vqa-capfilt-large",
            option="judge",
            optional=True,
        ),
    )
