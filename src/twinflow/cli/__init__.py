"""The ``twinflow`` command. It parses and prints; the work is done by one function below each command."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from twinflow.cli import evaluate  # noqa: F401 - a module of commands registers them on the app


def main() -> None:
    """Entry point: user errors print their message alone and exit with status 2."""
    _quiet()
    _let_memory_grow()
    from twinflow.cli import (  # noqa: F401 - each puts its command on the app
        cache,
        copy_model,
        export,
        export_checkpoint,
        geneval_detector,
        lab,
        plan,
    )
    from twinflow.cli.app import app
    from twinflow.errors import TwinflowError

    try:
        app()
    except (TwinflowError, OSError) as error:  # the latter of files: not there, not allowed, no room
        from rich.console import Console

        Console(stderr=True).print(
            f"[bold red]error:[/] {_escape(str(error))}", soft_wrap=True, highlight=False
        )
        sys.exit(2)


def _quiet() -> None:
    """Keep the libraries' own bars and notes out of ours; their errors still come through."""
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
        os.environ.setdefault(name, "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    # They tell of kernels for other machines than this.
    for name in ("torchao", "bitsandbytes", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _let_memory_grow() -> None:
    """Of a GPU, in segments that grow: calls of several sizes leave gaps between fixed ones; plans count on none."""
    own = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
    if sys.platform == "linux" and not any(name in os.environ for name in own):
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
