"""The tiny pipeline, built once, of which tests take copies; and all families."""

import pytest

from families import FAMILIES, NAMES
from twinflow.pipelines import AnyStepPipeline

from .driven import SIZE
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


@pytest.fixture(scope="module", autouse=True)
def small_sources():
    import diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus as edit

    kept = edit.VAE_IMAGE_SIZE, edit.CONDITION_IMAGE_SIZE
    edit.VAE_IMAGE_SIZE = edit.CONDITION_IMAGE_SIZE = SIZE
    yield
    edit.VAE_IMAGE_SIZE, edit.CONDITION_IMAGE_SIZE = kept


@pytest.fixture(params=NAMES)
def family(request):
    return FAMILIES[request.param]
