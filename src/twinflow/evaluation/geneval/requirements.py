"""What GenEval needs, told before anything is fetched."""

from __future__ import annotations

from twinflow.evaluation.requirements import Requirement

MMDET_FILE = "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth"
MMDET_URL = (
    "https://download.openmmlab.com/mmdetection/v2.0/mask2former/"
    f"mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco/{MMDET_FILE}"
)
MMDET_SHA256_START = "743b7d99"  # OpenMMLab puts the first eight digits into the name
HF_DETECTOR = "facebook/mask2former-swin-small-coco-instance"
CLIP = "openai/clip-vit-large-patch14"


def requirements() -> tuple[Requirement, ...]:
    return (
        Requirement(
            name="prompts",
            what="553 prompts with metadata, evaluation_metadata.jsonl, fetched once",
            size="85 kB",
            licence="MIT",
            source="github.com/djghosh13/geneval @ af4902f",
            option="prompts",
        ),
        Requirement(
            name="detector",
            what="the official Mask2Former Swin-S, converted once by `twinflow geneval-detector`",
            size="about 275 MB (68.8 million parameters, fp32)",
            licence="Apache-2.0 (OpenMMLab mmdetection)",
            source=MMDET_URL,
            option="detector",
        ),
        Requirement(
            name="detector (alternative)",
            what="the same architecture from Meta's training run: other decisions, so results carry its name",
            size="about 275 MB",
            licence="not known here (its card on the hub says)",
            source=HF_DETECTOR,
            option="detector",
            optional=True,
        ),
        Requirement(
            name="colors",
            what="CLIP ViT-L/14 with QuickGELU, for the tasks colors and color_attr",
            size="about 1.7 GB (428 million parameters, fp32)",
            licence="MIT (OpenAI CLIP)",
            source=CLIP,
            option="colors",
        ),
    )
