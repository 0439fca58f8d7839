"""The hub, where it can't be reached: said at once, and what was fetched before is opened."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twinflow.errors import TwinflowError

logger = logging.getLogger(__name__)


@contextmanager
def hub_or_cache(name: str | Path, *, fetched: Path | None = None) -> Iterator[None]:
    """While ``name`` is opened, a model, or a data set that was ``fetched`` to this folder if it was: where the hub
    can't be reached, its client is told so.

    By itself it would try six times for each file, and speak of each try, also of files that it has. Nothing happens
    for a folder. :class:`TwinflowError` if the client has nothing of it.
    """
    from huggingface_hub import constants

    if Path(name).exists() or constants.is_offline_mode():
        yield
        return
    try:
        ask()
    except Exception as error:  # of whichever library the client speaks HTTP by
        if not (fetched or model_cache(str(name)) / "snapshots").is_dir():
            raise TwinflowError(
                f"{name} is no folder here, and the hub can't be reached ({constants.ENDPOINT}: {error}): see to the "
                "network, or name a folder"
            ) from error
        logger.info("the hub can't be reached (%s): %s is opened as it was fetched before", error, name)
    else:
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def ask() -> None:
    """One request to the hub; an exception if there is no answer."""
    from huggingface_hub import constants, get_session

    get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)


def model_cache(name: str) -> Path:
    """Where the hub's client keeps what it has fetched of the model ``name``."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
