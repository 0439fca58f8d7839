"""Where a transformer's configuration comes from: a folder, the hub, a pipeline, or the published ones in here.

Nothing but JSON files is read or downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from twinflow.assets import locate
from twinflow.errors import TwinflowError
from twinflow.hub import hub_or_cache
from twinflow.planner.inputs import IMAGE_TOKENS, Latents
from twinflow.recipes.messages import unknown_key

_PUBLISHED = Path(__file__).parent / "published.json"
# Pipelines that bring a source picture to one area, whatever is drawn.
SOURCE_AREAS = {"QwenImageEditPipeline": 1024 * 1024, "QwenImageEditPlusPipeline": 1024 * 1024}
_PROBE = {"size": 64, "frames": 9}  # of the picture or clip that an autoencoder is measured with


@dataclass(frozen=True, kw_only=True)
class Compression:
    """What an autoencoder makes of a picture or clip: ``1 + (frames - 1) / temporal`` latent frames."""

    channels: int
    spatial: int
    temporal: int | None = None  # None: pictures only

    def latents(self, *, height: int, width: int, frames: int | None) -> Latents:
        return Latents(
            channels=self.channels,
            height=height // self.spatial,
            width=width // self.spatial,
            frames=None if self.temporal is None else 1 + ((frames or 1) - 1) // self.temporal,
        )


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A transformer by its configuration."""

    name: str
    kind: type
    config: Mapping[str, Any]
    compression: Compression
    text_tokens: int = 256
    size: int = 512  # pixels a side, where the recipe does not say
    frames: int | None = None
    source_area: int | None = (
        None  # pixels that source pictures are brought to; None: the size of what is drawn
    )
    image_tokens: int = (
        IMAGE_TOKENS  # of a source picture, beside those of the text, where the model has them
    )
    encoders: Mapping[str, int] = field(default_factory=dict)  # parameters of the pipeline's other networks

    @classmethod
    def published(cls, name: str) -> Backbone:
        """One of the configurations that twinflow brings along."""
        known = published()
        if name not in known:
            raise TwinflowError(unknown_key(name, known, where="--config", noun="configuration"))
        entry = known[name]
        return cls(
            name=name,
            kind=_diffusers_class(entry["class"]),
            config=entry["config"],
            compression=Compression(**entry["latents"]),
            text_tokens=entry["text_tokens"],
            size=entry["size"],
            frames=entry.get("frames"),
            source_area=entry.get("source_area"),
            encoders=entry.get("encoders", {}),
        )

    @classmethod
    def stored(cls, path_or_id: str) -> Backbone:
        """That of a diffusers folder or hub id."""
        files = _Files(locate(path_or_id))
        index = files.read("model_index.json")
        if "transformer" not in index:
            raise TwinflowError(
                f"{path_or_id} has no transformer: only flow-matching transformers are planned for"
            )
        compression = Compression(
            channels=int(files.read("transformer/config.json")["in_channels"]), spatial=1
        )
        if "vae" in index:
            compression = measure_autoencoder(
                _diffusers_class(index["vae"][1]), files.read("vae/config.json")
            )
        return cls(
            name=path_or_id,
            kind=_diffusers_class(index["transformer"][1]),
            config=files.read("transformer/config.json"),
            compression=compression,
            source_area=SOURCE_AREAS.get(index.get("_class_name")),
            image_tokens=image_tokens(files.read("image_encoder/config.json"))
            if (index.get("image_encoder") or [None])[0]
            else IMAGE_TOKENS,
            encoders=files.encoders(index),
        )


def published() -> dict[str, Any]:
    return json.loads(_PUBLISHED.read_text())


def measure_autoencoder(kind: type, config: Mapping[str, Any]) -> Compression:
    """Let a fake autoencoder encode a fake picture, or clip, and look at what it makes of it."""
    size, frames = _PROBE["size"], _PROBE["frames"]
    reasons = []
    with FakeTensorMode(), torch.no_grad():
        autoencoder: Any = kind.from_config(dict(config))  # type: ignore[attr-defined]
        autoencoder.eval()
        for shape in ((1, 3, size, size), (1, 3, frames, size, size)):
            try:
                encoded = autoencoder.encode(torch.zeros(shape))
                z = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
            except Exception as error:  # an autoencoder of the other kind
                reasons.append(f"{type(error).__name__}: {str(error)[:150]}")
                continue
            if len(shape) == 4:
                return Compression(channels=z.shape[1], spatial=size // z.shape[-1])
            return Compression(
                channels=z.shape[1],
                spatial=size // z.shape[-1],
                temporal=(frames - 1) // max(z.shape[2] - 1, 1),
            )
    raise TwinflowError(
        f"the autoencoder {kind.__name__} encodes neither a picture nor a clip: {'; '.join(reasons)}"
    )


def image_tokens(config: Mapping[str, Any]) -> int:
    """Tokens that a vision transformer with ``config`` makes of a picture: one a patch, and one of the whole."""
    size, patch = config.get("image_size"), config.get("patch_size")
    return (size // patch) ** 2 + 1 if size and patch else IMAGE_TOKENS


class _Files:
    """JSON files of a folder, or of a model on the hub."""

    def __init__(self, path_or_id: str) -> None:
        self.path_or_id, self.folder = path_or_id, Path(path_or_id)

    def read(self, name: str) -> Any:
        try:
            return json.loads(self._path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TwinflowError(
                f"{self.path_or_id}: {name} can't be read ({error}); give a diffusers folder or hub id, or one of "
                f"the configurations {', '.join(published())} with --config"
            ) from error

    def encoders(self, index: Mapping[str, Any]) -> dict[str, int]:
        """Parameters of the other networks in a local folder, from the headers of their weights."""
        found = {}
        for name in index:
            if name == "transformer" or not (self.folder / name).is_dir():
                continue
            count = sum(_count(file) for file in (self.folder / name).glob("*.safetensors"))
            if count:
                found[name] = count
        return found

    def _path(self, name: str) -> Path:
        if self.folder.is_dir():
            return self.folder / name
        from huggingface_hub import hf_hub_download

        try:
            with hub_or_cache(self.path_or_id):
                return Path(hf_hub_download(self.path_or_id, name))
        except Exception as error:  # of the network, of the hub, of a wrong name
            raise OSError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def _count(file: Path) -> int:
    """Parameters in a safetensors file."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        return sum(int(torch.Size(tensors.get_slice(key).get_shape()).numel()) for key in tensors.keys())  # noqa: SIM118


def _diffusers_class(name: str) -> type:
    import diffusers

    kind = getattr(diffusers, name, None)
    if kind is None:
        raise TwinflowError(
            f"diffusers {diffusers.__version__} has no class {name}: a newer version may have it"
        )
    return kind
