"""The tiny pipeline, built once; tests work on copies of it."""

import pytest

from twinflow.pipelines import AnyStepPipeline

from .tiny import copy_of, lively_pipeline


@pytest.fixture(scope="session")
def tiny_pipeline():
    return lively_pipeline()


@pytest.fixture
def stock(tiny_pipeline):
    return copy_of(tiny_pipeline)


@pytest.fixture
def any_step(stock):
    """A pipeline with an untrained branch; its padding is not folded, so that it is the stock one bit for bit."""
    return AnyStepPipeline(stock, fold_padding=False)
