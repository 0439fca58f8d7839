import pytest

from pipelines.tiny import lively_pipeline


@pytest.fixture(scope="session")
def tiny_pipeline():
    return lively_pipeline()
