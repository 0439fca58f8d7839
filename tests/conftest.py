"""Property tests take the same examples in every run, however slow the machine is; sums are in one order."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is there: bytes are compared across processes

from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")
