"""Any-step checkpoints on disk, in two forms.

A whole pipeline is a stock folder with the target-time branch and a small JSON beside it. A LoRA is that JSON, the
branch, and the adapter in the file that diffusers loads; the base is named, not copied.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from twinflow.assets import locate
from twinflow.errors import TwinflowError
from twinflow.hub import hub_or_cache
from twinflow.pipelines import lora
from twinflow.pipelines import target_time as tt
from twinflow.pipelines.exported import EXPORT_FILE
from twinflow.pipelines.lora import LoraSettings
from twinflow.pipelines.model_name import CONFIG_FILE, INDEX_FILE, check_name
from twinflow.pipelines.processors import parts_without_torchvision
from twinflow.tensor_files import let_read, save_tensors

BRANCH_FILE = "target_time.safetensors"
LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for
LORA_PREFIX = "transformer."
METADATA_KEY = "lora_adapter_metadata"  # under which diffusers keeps rank and alpha in that file


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What the JSON says of a LoRA: its settings, and the base that it was trained on."""

    settings: LoraSettings
    base: str | None  # folder, hub id or embedded model; None where the pipeline was made in memory
    family: str  # class of the transformer
    fingerprint: str  # of the base's weights

    @classmethod
    def of(cls, transformer: nn.Module, settings: LoraSettings, *, base: str | None) -> Adapter:
        family = type(transformer).__name__
        return cls(settings=settings, base=base, family=family, fingerprint=fingerprint(transformer))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The small JSON beside a checkpoint; empty for a stock folder or a hub id."""

    fake_time: str | None = None  # how the branch marks t < 0; None: there is no branch
    words: list[str] | None = None
    adapter: Adapter | None = None

    @classmethod
    def of(
        cls, transformer: nn.Module, *, words: list[str] | None, adapter: Adapter | None = None
    ) -> Manifest:
        fake_time = None
        if tt.has_target_time(transformer):
            fake_time = "sign" if tt.marks_fake_by_sign(transformer) else "negative"
        return cls(fake_time=fake_time, words=words, adapter=adapter)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        file = folder / CONFIG_FILE
        if not file.is_file():
            return cls()
        try:
            config = json.loads(file.read_text())
            if config["format"] != 1 or config.get("fake_time", "negative") not in ("negative", "sign"):
                raise ValueError(f"it says {config}")
            adapter = config.get("adapter")
            if adapter is not None:
                settings = dict(adapter["settings"])
                if settings["targets"] is not None:
                    settings["targets"] = tuple(settings["targets"])
                adapter = Adapter(**{**adapter, "settings": LoraSettings(**settings)})
        except (ValueError, KeyError, TypeError) as error:
            raise TwinflowError(f"{file} is not of the format that this version writes: {error!r}") from error
        return cls(fake_time=config.get("fake_time"), words=config.get("words"), adapter=adapter)

    def write(self, folder: Path) -> None:
        config: dict[str, Any] = {"format": 1}
        config |= {name: value for name, value in asdict(self).items() if value is not None}
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


# Whole pipelines


def load_stock(path_or_id: str | Path, *, dtype: torch.dtype, **parts: Any) -> Any:
    """The diffusers pipeline of a folder or hub id, with ``parts`` that are there; only safetensors are read."""
    check_name(path_or_id)
    folder = Path(path_or_id)
    if folder.is_dir() and not (folder / INDEX_FILE).is_file():
        raise TwinflowError(f"{folder} is not a diffusers pipeline: it has no model_index.json")
    try:
        with hub_or_cache(path_or_id):
            kind = _pipeline_class(str(path_or_id))
            parts = parts_without_torchvision(str(path_or_id)) | parts
            return kind.from_pretrained(str(path_or_id), dtype=dtype, use_safetensors=True, **parts)
    except TwinflowError:
        raise
    except Exception as error:  # of files, of what is in them, of the hub's client and its network
        what = "a folder that diffusers can load" if folder.is_dir() else "a folder or a model on the hub"
        raise TwinflowError(f"{path_or_id} is not {what}: {error}") from error


def _pipeline_class(path_or_id: str) -> Any:
    """The class that the index names. Its base class would open it too, but load what is given where a class can do
    without it: the transformer of Wan, the image encoder of its image-to-video.
    """
    import diffusers

    try:
        name = diffusers.DiffusionPipeline.load_config(path_or_id)["_class_name"]
    except Exception:  # opening it says what is wrong
        name = None
    known = isinstance(name, str) and hasattr(diffusers, name)
    return getattr(diffusers, str(name)) if known else diffusers.DiffusionPipeline


def with_our_files(path_or_id: str | Path) -> Path:
    """The folder ``path_or_id``; of a checkpoint on the hub, the one that the hub's client keeps the JSON, the branch
    and the adapter in. diffusers fetches none of them: it would open the stock pipeline alone.
    """
    folder = Path(path_or_id)
    if folder.is_dir():
        return folder
    check_name(path_or_id)
    from huggingface_hub import hf_hub_download

    found = []
    with hub_or_cache(path_or_id):
        for name in (CONFIG_FILE, BRANCH_FILE, LORA_FILE):
            try:
                found.append(Path(hf_hub_download(str(path_or_id), name)))
            except Exception:  # not there, or no id: opening the pipeline says which
                if not found:
                    return folder
    return found[0].parent


def save_whole(pipe: Any, path: Path, manifest: Manifest) -> None:
    """Write the stock pipeline ``pipe`` with its branch, if it has one, and ``manifest``."""
    if tt.has_target_time(pipe.transformer):
        branch = _branch_of(pipe.transformer)
        with tt.detached(pipe.transformer):
            save_stock(pipe, path)
        save_tensors(branch, path / BRANCH_FILE)
    else:
        save_stock(pipe, path)
    manifest.write(path)


def save_stock(pipe: Any, path: str | Path) -> None:
    """Write a stock pipeline folder, and take away what another checkpoint in the same place has left.

    That goes first, and the index comes last: a folder that was not written to its end is no pipeline, rather than one
    of old parts and new ones. Weights in more or fewer files than the new ones would be read in their place.
    """
    folder = Path(path)
    for name in (INDEX_FILE, BRANCH_FILE, CONFIG_FILE, LORA_FILE, EXPORT_FILE):
        (folder / name).unlink(missing_ok=True)
    for part in pipe.components:
        for file in (folder / part).glob("*.safetensors*"):  # and their index
            file.unlink()
    pipe.save_pretrained(path, safe_serialization=True)
    let_read(path, like=INDEX_FILE)


# Adapters


def save_adapter(transformer: Any, path: Path, manifest: Manifest) -> None:
    """Write the LoRA of ``transformer``, its branch, and ``manifest``."""
    assert manifest.adapter is not None
    if (path / INDEX_FILE).exists():
        raise TwinflowError(f"{path} holds a whole pipeline: save the LoRA to another folder")
    path.mkdir(parents=True, exist_ok=True)
    factors = lora.lora_state_dict(transformer)
    said = lora.diffusers_metadata(manifest.adapter.settings, list(lora.lora_layers(transformer)))
    metadata = {f"{LORA_PREFIX}{name}": value for name, value in said.items()}
    save_tensors(
        {f"{LORA_PREFIX}{name}": value.detach().contiguous() for name, value in factors.items()},
        path / LORA_FILE,
        metadata={"format": "pt", METADATA_KEY: json.dumps(metadata, indent=2, sort_keys=True)},
    )
    if tt.has_target_time(transformer):
        save_tensors(_branch_of(transformer), path / BRANCH_FILE)
    manifest.write(path)


def load_adapter(transformer: Any, folder: Path, manifest: Manifest, *, same_base: bool) -> LoraSettings:
    """Put the LoRA in ``folder`` on ``transformer``, which has a branch if it was trained with one.

    ``same_base``: the base is the one that the checkpoint names, so its weights must be those that were trained
    on. :class:`TwinflowError` if the adapter is of another model.
    """
    adapter = manifest.adapter
    if adapter is None:
        raise TwinflowError(f"{folder} holds no LoRA of twinflow: its {CONFIG_FILE} names none")
    family = type(transformer).__name__
    if family != adapter.family:
        raise TwinflowError(
            f"{folder} is a LoRA of a {adapter.family} ({adapter.base or 'unnamed'}), and this pipeline has a "
            f"{family}: give the base that it was trained on"
        )
    if same_base and fingerprint(transformer) != adapter.fingerprint:
        raise TwinflowError(
            f"{adapter.base}, the base of the LoRA {folder}, has changed since it was trained on: give base= to use "
            "it, or another, all the same"
        )
    factors = _read(folder / LORA_FILE, "the adapter")
    strange = sorted(name for name in factors if not name.startswith(LORA_PREFIX) or ".lora_" not in name)
    if strange:
        raise TwinflowError(f"{folder / LORA_FILE} has weights that are no LoRA's: {', '.join(strange[:3])}")
    plain = {name.removeprefix(LORA_PREFIX): value for name, value in factors.items()}
    try:
        lora.load_lora(transformer, plain, adapter.settings)
    except ValueError as error:
        raise TwinflowError(
            f"{folder} does not fit this {family}, it is from another one: {error}"
        ) from error
    if manifest.fake_time is not None:
        load_branch(transformer, folder)
    return adapter.settings


def base_name(path_or_id: str | Path) -> str:
    """How a checkpoint names its base: an embedded model or a hub id as it is, a folder by its full path."""
    if locate(path_or_id) == str(path_or_id) and Path(path_or_id).is_dir():
        return str(Path(path_or_id).resolve())
    return str(path_or_id)


def fingerprint(transformer: nn.Module) -> str:
    """A number for the weights under a LoRA: that of the vectors alone, which are never quantised, in bf16, so that
    neither dtype nor quantisation has a say."""
    digest = hashlib.sha256()
    for name, parameter in transformer.named_parameters():
        if parameter.dim() == 1 and "target_embedder" not in name and "fake_embedding" not in name:
            digest.update(parameter.detach().to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


# The branch


def load_branch(transformer: nn.Module, folder: Path) -> None:
    """Fill the branch of ``transformer`` from a checkpoint."""
    file = folder / BRANCH_FILE
    branch = _read(file, "the target-time branch")
    own = tt.target_time_state_dict(transformer)
    wrong = set(own) ^ set(branch) or {name for name in own if own[name].shape != branch[name].shape}
    if wrong:
        raise TwinflowError(
            f"{file} does not fit this transformer, it is from another one: {', '.join(sorted(wrong))}"
        )
    transformer.load_state_dict(branch, strict=False)


def _branch_of(transformer: nn.Module) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in tt.target_time_state_dict(transformer).items()}


def _read(file: Path, what: str) -> Mapping[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise TwinflowError(f"{file}, {what}, can't be read: {error}") from error
