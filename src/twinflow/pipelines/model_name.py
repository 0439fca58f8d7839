"""What may be named as a model: the folder of a pipeline, or a model on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from twinflow.errors import TwinflowError
from twinflow.pipelines.exported import Exported

INDEX_FILE = "model_index.json"  # of any pipeline that diffusers opens
CONFIG_FILE = "twinflow.json"  # of a checkpoint to train on


def check_name(path_or_id: str | Path) -> None:
    """:class:`TwinflowError` for what is neither the folder of a pipeline nor can be the name of one on the hub."""
    folder = Path(path_or_id)
    if folder.is_file():
        exported = Exported.of_file(folder)
        if exported is not None:
            raise TwinflowError(exported.refusal(folder, one_file=True))
        raise TwinflowError(
            f"{folder} is a file, and a model is a folder in diffusers' format, or a model on the hub: let diffusers "
            "open the file (from_single_file, or load_lora_weights), and save the pipeline (save_pretrained)"
        )
    if not folder.is_dir():
        if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(path_or_id)):
            raise TwinflowError(
                f"{path_or_id} is not a folder or a model on the hub: there is no such folder, and models on the "
                "hub are called ORGANISATION/NAME"
            )
    elif not any((folder / name).is_file() for name in (INDEX_FILE, CONFIG_FILE)):
        instead = ""
        if (folder / "pipeline").is_dir():
            instead = f". It is the folder of a run, and its trained model is {folder / 'pipeline'}"
        elif (folder / "state.json").is_file():
            instead = (
                f". It is a checkpoint: `twinflow export-checkpoint {folder} FOLDER` makes a pipeline of it"
            )
        elif (folder / "recipe.yaml").is_file():
            instead = ". It is the folder of a run that has not ended: the same `twinflow train` goes on"
        raise TwinflowError(f"{folder} is not a diffusers pipeline: it has no model_index.json{instead}")
