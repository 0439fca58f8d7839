"""From a validated recipe to a finished run: its data, its model, its trainer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from twinflow.assets import locate
from twinflow.config import Recipe, load_recipe
from twinflow.data.cache import (
    INDEX_FILE,
    RECORD_FILE,
    CachedRows,
    check_folder,
    check_identity,
    claimed,
    read_index,
    remember_files,
    write_cache,
)
from twinflow.data.encoding import ItemEncoder
from twinflow.data.identity import FileHashes, data_identity, model_identity, pipeline_folder
from twinflow.data.opening import open_data
from twinflow.data.pictures import open_picture
from twinflow.data.shapeworld.captions import vocabulary
from twinflow.data.stream import StreamDataset, StreamOrder
from twinflow.errors import TwinflowError, check_place
from twinflow.pipelines import AnyStepPipeline, LoraSettings
from twinflow.pipelines.absent import Together
from twinflow.pipelines.checkpoint import Manifest
from twinflow.pipelines.exported import Exported
from twinflow.pipelines.freezing import freeze_parameters
from twinflow.pipelines.left_out import left_out, recorded
from twinflow.pipelines.new import new_pipeline
from twinflow.planner.prediction import backbone_of, check_stored, predict
from twinflow.training import RunResult, Trainer
from twinflow.training.checkpoint import CheckpointFolder
from twinflow.training.from_scratch import FROM_SCRATCH
from twinflow.training.joining import joined
from twinflow.training.parallel import check_layout
from twinflow.training.parts import AutoencoderPart, CaptionFacts, TextEncodersPart
from twinflow.training.processes import Processes
from twinflow.training.run_folder import RunFolder, check_processes
from twinflow.training.sharded_checkpoint import read_whole
from twinflow.training.weights import overwrite

logger = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CALIBRATION_IMAGES = 2000  # for the normalisation of a new autoencoder's latents


def build_dataset(recipe: Recipe) -> Any:
    """The data set of ``recipe.data``; everything that can be wrong with it is found here."""
    data = recipe.data
    if isinstance(data.cache, str):
        return open_cache(recipe)
    if data.kind == "shapeworld" and recipe.model.part == "text_encoders":
        return CaptionFacts(data.level, length=data.length, seed=data.seed)
    return open_data(data, seed=recipe.train.seed)


def check_sources(pipe: Any, dataset: Any) -> None:
    """Refuse to train a pipeline that edits pictures, or sets them in motion, on data without such pictures."""
    if not getattr(pipe, "edits", False) or isinstance(dataset, CachedRows):
        return
    streamed = isinstance(dataset, StreamDataset)
    if (dataset.reader.columns.source is None) if streamed else ("source" not in dataset[0]):
        raise TwinflowError(
            f"{type(pipe.pipe).__name__} edits pictures, or sets them in motion, and the data has no source pictures: "
            'name their column in data.columns.source, add "source" to the lines of metadata.jsonl, or take the first '
            "frame of each clip, data.source=first_frame"
        )


def build_for_cache(recipe: Recipe, rows: CachedRows) -> Any:
    """What is trained, without autoencoder and text encoders where that is possible: if nothing is drawn, and if the
    pipeline asks nothing of them while it is opened but what it asked when the cache was written."""
    if recipe.preview.every:
        return build_model(recipe, rows)
    try:
        with left_out(pipeline_folder(recipe.model.path), rows.folder / RECORD_FILE):
            return build_model(recipe, rows)
    except Exception as error:  # of whatever a pipeline does to a part without weights
        logger.warning("autoencoder and text encoders can't be left out: %s", error)
    return build_model(recipe, rows)


def open_cache(recipe: Recipe) -> CachedRows:
    """What :func:`cache` wrote to ``data.cache``; refused if it was made of anything else than is there now."""
    rows = CachedRows(recipe.data.cache)
    hashes = FileHashes(rows.index["files"])
    check_identity(rows.folder, rows.index, _identity(recipe, hashes))
    remember_files(rows, hashes)
    return rows


def cache(recipe: Recipe, *, progress: Callable[[int, int], None] | None = None) -> CachedRows:
    """Encode all of the recipe's data into the folder ``data.cache``, or go on where that was stopped."""
    data = recipe.data
    if not isinstance(data.cache, str):
        raise TwinflowError("data.cache must name the folder to write: add data.cache=FOLDER")
    folder, hashes = Path(data.cache), FileHashes()
    if (folder / INDEX_FILE).is_file():
        hashes = FileHashes(read_index(folder)["files"])
    identity = _identity(recipe, hashes)  # before the work: files that change meanwhile differ from it
    check_folder(folder, identity)
    dataset = open_data(data, seed=recipe.train.seed)
    with claimed(folder):
        with recorded(folder / RECORD_FILE):
            pipe = build_model(recipe, dataset)
            with suppress(Exception):  # what the plan of a run asks of them; not every family can be planned
                backbone_of(pipe)
        encoder = ItemEncoder(pipe, unconditional=recipe.unconditional_prompt, together=data.encode_batch)
        write_cache(folder, dataset, encoder, identity=identity, hashes=hashes, progress=progress)
    return CachedRows(folder)


def _identity(recipe: Recipe, hashes: FileHashes) -> dict[str, Any]:
    model = recipe.model
    settings = {"call": model.call, "dtype": model.dtype}
    return {
        "model": model_identity(model.path, settings=settings, hashes=hashes),
        "data": data_identity(recipe.data, hashes=hashes),
        "unconditional_prompt": recipe.unconditional_prompt,
    }


def build_model(recipe: Recipe, dataset: Any) -> Any:
    """What is trained: an any-step pipeline, or one part of a stock pipeline. The latter need a ``dataset``."""
    model, device = recipe.model, device_of(recipe)
    exported = Exported.read(model.path)
    if exported is not None:
        raise TwinflowError(exported.refusal(model.path))
    if model.part == "transformer":
        pipe = AnyStepPipeline.from_pretrained(
            model.path,
            target_time=model.target_time,
            fake_time=model.fake_time,
            call=call_of(recipe),
            quantize=model.quantize,
            dtype=DTYPES[model.dtype],
            device=device,
            together=together_for(recipe),
        )
        if pipe.exported is not None:  # of the hub, where it is seen once it is opened
            raise TwinflowError(pipe.exported.refusal(model.path))
        pipe.pipe.set_progress_bar_config(disable=True)
        prepare(pipe, recipe)
        if dataset is not None:
            check_sources(pipe, dataset)
            check_guidance(pipe, recipe)
        freeze_parameters(pipe.pipe.transformer, model.freeze)
        if recipe.data.kind == "shapeworld":
            pipe.words = vocabulary(recipe.data.level)
        return pipe
    if recipe.train.gradient_checkpointing:
        raise TwinflowError(
            f"train.gradient_checkpointing is for transformers: leave it out for model.part = {model.part!r}"
        )
    stock = _stock_pipeline(model.path).to(device)
    if model.part == "text_encoders":
        if not isinstance(dataset, CaptionFacts):
            raise TwinflowError(
                "model.part = 'text_encoders' needs data.kind = 'shapeworld': only it knows facts"
            )
        return TextEncodersPart(stock, sizes=dataset.sizes)
    count = min(CALIBRATION_IMAGES, len(dataset))
    pixels = torch.stack([dataset[i]["pixels"] for i in range(count)])
    return AutoencoderPart(stock, calibration=pixels.split(100))


def check_guidance(pipe: AnyStepPipeline, recipe: Recipe) -> None:
    """Refuse to bake guidance into a network that was distilled to take it as an input: it would be guided twice."""
    for key, off in (("guidance", 0), ("guidance_mix", 1)):
        given = recipe.objective.get(key, off)
        if given != off and pipe.guidance_is_an_input:
            raise TwinflowError(
                f"objective.{key} = {given} is not possible: {type(pipe.pipe).__name__} was distilled to take its "
                f"guidance as an input of the network, and would be guided twice; set objective.{key}={off}, and give "
                "that input in model.call, guidance_scale"
            )


def call_of(recipe: Recipe) -> dict[str, Any]:
    """``model.call`` as the stock pipeline takes it: a source picture, of whose file it has the name, opened."""
    call = dict(recipe.model.call)
    if isinstance(call.get("image"), str):
        try:
            call["image"] = open_picture(Path(call["image"]))
        except OSError as error:
            raise TwinflowError(
                f"model.call.image = {call['image']!r} is no picture: name the file of a source picture, of about "
                f"the size to train at ({error})"
            ) from error
    return call


def together_for(recipe: Recipe) -> Together | None:
    """Processes that open the model together: the first one alone reads its transformer, and the others get slices of
    it, or all of it, from there. Weights that are quantised as they are read can't be sent."""
    processes, folder = Processes.current(), Path(locate(recipe.model.path))
    if processes.world_size == 1 or recipe.model.quantize is not None:
        return None
    if Manifest.read(folder).adapter is not None or Exported.read(folder) is not None:
        return None
    return Together(share=processes.share, here=processes.is_main)


def prepare(pipe: AnyStepPipeline, recipe: Recipe) -> None:
    """Let that part of ``pipe`` be trained which ``recipe.model`` names: an adapter, or all of the transformer."""
    if recipe.train.gradient_checkpointing:
        pipe.enable_gradient_checkpointing()
    if recipe.model.train == "lora":
        pipe.add_lora(LoraSettings(**recipe.model.lora.model_dump()))
    else:
        pipe.merge_lora()  # of a pipeline that was opened as a LoRA


def device_of(recipe: Recipe) -> str:
    """The device of ``train.device``; an error if it is not there."""
    wanted, there = recipe.train.device, torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise TwinflowError("train.device = 'cuda', but torch finds no CUDA device: use 'cpu' or 'auto'")
    return "cuda" if there and wanted != "cpu" else "cpu"


def _stock_pipeline(path: str) -> Any:
    if path in FROM_SCRATCH:
        return new_pipeline(FROM_SCRATCH[path]())
    return AnyStepPipeline.from_pretrained(path, target_time=False, fold_padding=False).pipe


def launch(recipe: Recipe, *, resume: str = "auto") -> RunResult:
    """Train ``recipe`` to its end, on from its last checkpoint if there is one."""
    with joined(cuda=device_of(recipe) == "cuda"):
        return build_trainer(recipe, resume=resume).run()


def export_checkpoint(checkpoint: Path, output: Path) -> Path:
    """Write the pipeline of a ``checkpoint`` of a run, sharded or not, to ``output``: with the averaged weights, if the
    run has an average. ``checkpoint`` may be the folder of the run, for its latest. On the CPU, in one process."""
    if not checkpoint.is_dir():
        raise TwinflowError(f"there is no folder {checkpoint}")
    check_place(output, name="the output")
    run = checkpoint if (checkpoint / "recipe.yaml").is_file() else checkpoint.absolute().parent.parent
    if not (run / "recipe.yaml").is_file():
        raise TwinflowError(f"{checkpoint} is no checkpoint of a run: there is no {run / 'recipe.yaml'}")
    found = CheckpointFolder(run / "checkpoints", keep=1).latest() if run == checkpoint else checkpoint
    if found is None or not found.is_dir():
        raise TwinflowError(f"there is no checkpoint in {checkpoint}")
    if output.exists():
        raise TwinflowError(f"{output} is there already: choose another folder")
    recipe = load_recipe(run / "recipe.yaml")
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"device": "cpu"})})
    tensors = read_whole(found, groups=("weights", "average")).tensors
    whole = recipe.model.part == "transformer"  # its data may be elsewhere by now
    model = build_model(recipe, None if whole else build_dataset(recipe))
    overwrite(model.network, {**tensors["weights"], **tensors.get("average", {})})
    model.save_pretrained(output)
    return output


def build_trainer(recipe: Recipe, *, resume: str = "auto", **options: Any) -> Trainer:
    """The trainer of ``recipe``, its data and its model; ``options`` are further arguments of :class:`Trainer`."""
    # What can't be gone on with, or not by these processes, is refused before anything is loaded.
    folder = RunFolder(recipe)
    checkpoint = folder.resume_from(resume)
    device = torch.device(device_of(recipe))
    place, shards = check_layout(recipe, recipe.build_objective(), device)
    folder.check_shared(checkpoint, place, sharded=shards > 1)
    if checkpoint is not None:
        check_processes(checkpoint, recipe, place, shards=shards)
    torch.manual_seed(recipe.train.seed)
    dataset = build_dataset(recipe)
    if isinstance(dataset, StreamDataset):
        StreamOrder(
            dataset, batch=1, seed=recipe.train.seed, rank=place.data_rank, world_size=place.data_count
        ).check()
    check_stored(recipe, device)
    build = build_for_cache if isinstance(dataset, CachedRows) else build_model
    model = build(recipe, dataset)
    prediction = predict(recipe, model)
    return Trainer(recipe, model, dataset, resume=resume, prediction=prediction, **options)
