"""GenEval (arXiv 2310.11513) as its authors score it, without mmdet, on today's libraries, CPU or GPU."""

from twinflow.evaluation.geneval.colors import ClipColors, ColorClassifier
from twinflow.evaluation.geneval.convert import convert_checkpoint, convert_model
from twinflow.evaluation.geneval.detector import Mask2FormerDetector, MaskedDetection, ObjectDetector
from twinflow.evaluation.geneval.image import score_image
from twinflow.evaluation.geneval.prompts import CLASS_NAMES, COLORS, TASKS, PromptFile, read_prompts
from twinflow.evaluation.geneval.requirements import requirements
from twinflow.evaluation.geneval.suite import GenEval, GenEvalReport, PromptWork

__all__ = [
    "CLASS_NAMES",
    "COLORS",
    "TASKS",
    "ClipColors",
    "ColorClassifier",
    "GenEval",
    "GenEvalReport",
    "Mask2FormerDetector",
    "MaskedDetection",
    "ObjectDetector",
    "PromptFile",
    "PromptWork",
    "convert_checkpoint",
    "convert_model",
    "read_prompts",
    "requirements",
    "score_image",
]
