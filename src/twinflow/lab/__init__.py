"""Methods side by side: the same base, data, seeds, search and budget; one leaderboard."""

from twinflow.lab.run import run_lab
from twinflow.lab.settings import Lab, load_lab

__all__ = ["Lab", "load_lab", "run_lab"]
