"""DPG-Bench (ELLA, arXiv 2403.05135): dense prompts, dependent questions, and a judge whose name is in every result."""

from twinflow.evaluation.dpg.judges import Judge, VlmJudge, VqaJudge, load_judge
from twinflow.evaluation.dpg.prompts import DPGPrompts, read_prompts
from twinflow.evaluation.dpg.questions import Question, Questions, read_questions
from twinflow.evaluation.dpg.requirements import requirements
from twinflow.evaluation.dpg.scores import DPGScores, dpg_scores
from twinflow.evaluation.dpg.suite import DPGBench, DPGReport, DPGWork

__all__ = [
    "DPGBench",
    "DPGPrompts",
    "DPGReport",
    "DPGScores",
    "DPGWork",
    "Judge",
    "Question",
    "Questions",
    "VlmJudge",
    "VqaJudge",
    "dpg_scores",
    "load_judge",
    "read_prompts",
    "read_questions",
    "requirements",
]
