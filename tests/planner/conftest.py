"""A planner that tests share."""

from __future__ import annotations

import pytest

from twinflow.objectives import FlowMatching
from twinflow.planner import Backbone, Planner


@pytest.fixture(scope="module")
def sana() -> Planner:
    return Planner(Backbone.published("sana-0.6b"), FlowMatching())
