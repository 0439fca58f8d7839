"""Open a pipeline without its autoencoder and text encoders, for training on what they encoded before.

A pipeline is understood by watching it run, and it can't run without its encoders. So what they answer while it is
opened in full is written down (:func:`recorded`), and later stand-ins say the same (:func:`left_out`). Stand-ins have
the configuration of what they stand in for, and no weights: none are read, moved or run. (Small buffers, such as the
mean and deviation of latents that FLUX.2 keeps in its autoencoder, are on record too.) When the pipeline is saved,
the files of the originals are copied.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from twinflow.errors import TwinflowError
from twinflow.pipelines.weightless import Weightless, put_before
from twinflow.tensor_files import save_tensors

METHODS = ("forward", "encode")  # of text encoders and of autoencoders
SMALL = 1_000_000  # numbers
TRAINED = ("transformer", "transformer_2")


@contextmanager
def recorded(file: Path) -> Iterator[None]:
    """Pipelines that are opened meanwhile write to ``file`` what their encoders are asked and answer."""
    calls: dict[str, Any] = {}
    buffers: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    undo: list[Callable[[], None]] = []

    def watch(name: str, module: nn.Module, method: str) -> None:
        stock = getattr(module, method)

        def ask(*args: Any, **kwargs: Any) -> Any:
            answer = stock(*args, **kwargs)
            calls.setdefault(_question(name, method, args, kwargs), _freeze(answer, tensors))
            return answer

        module.__dict__[method] = ask
        undo.append(lambda: module.__dict__.pop(method, None))

    def opened(stock_open: Callable[..., Any], path: Any, arguments: dict[str, Any]) -> Any:
        pipe = stock_open(path, **arguments)
        for name, module in pipe.components.items():
            if isinstance(module, nn.Module) and name not in TRAINED:
                small = {key: value for key, value in module.named_buffers() if value.numel() <= SMALL}
                buffers[name] = _freeze(small, tensors)
                for method in METHODS:
                    if hasattr(module, method):
                        watch(name, module, method)
        return pipe

    try:
        with _opening(opened):
            yield
    finally:
        for restore in undo:
            restore()
    hidden = file.with_name(f".writing-{file.name}")
    save_tensors(tensors, hidden, metadata={"calls": json.dumps(calls), "buffers": json.dumps(buffers)})
    hidden.replace(file)


@contextmanager
def left_out(folder: Path, record: Path) -> Iterator[None]:
    """Pipelines of ``folder`` that are opened meanwhile have stand-ins, which answer as ``record`` says.

    A stand-in that is asked anything else raises :class:`TwinflowError`.
    """
    with safe_open(record, framework="pt") as file:
        calls, buffers = (json.loads(file.metadata()[key]) for key in ("calls", "buffers"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict

    def answer(question: str, device: torch.device) -> Any:
        if question not in calls:
            raise TwinflowError(f"{question.split()[0]} is left out, and was asked what is not on record")
        return _thaw(calls[question], tensors, device)

    def opened(stock_open: Callable[..., Any], path: Any, arguments: dict[str, Any]) -> Any:
        dtype = arguments.get("dtype", torch.float32)
        stand_ins = _stand_ins(folder, dtype, answer)
        for name, module in stand_ins.items():
            for key, value in _thaw(buffers.get(name, {"output": {}}), tensors, torch.device("cpu")).items():
                place, _, own = key.rpartition(".")
                module.get_submodule(place)._buffers[own] = value
        return stock_open(path, **arguments, **stand_ins)

    with _opening(opened):
        yield


@contextmanager
def _opening(opened: Callable[[Callable[..., Any], Any, dict[str, Any]], Any]) -> Iterator[None]:
    """Let ``opened`` open pipelines; for the length of the block."""
    from diffusers import DiffusionPipeline

    stock = DiffusionPipeline.__dict__["from_pretrained"]

    def from_pretrained(cls: Any, path: Any, **arguments: Any) -> Any:
        return opened(lambda *args, **more: stock.__func__(cls, *args, **more), path, arguments)

    DiffusionPipeline.from_pretrained = classmethod(from_pretrained)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        DiffusionPipeline.from_pretrained = stock  # type: ignore[method-assign]


class StandIn(Weightless):
    """An encoder that says what is on record; see :func:`left_out`."""

    _name: str
    _source: Path
    _answer: Callable[[str, torch.device], Any]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._answer(_question(self._name, "forward", args, kwargs), self.device)

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        return self._answer(_question(self._name, "encode", args, kwargs), self.device)

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        shutil.copytree(self._source, save_directory, dirs_exist_ok=True)


def _stand_ins(folder: Path, dtype: torch.dtype, answer: Callable[..., Any]) -> dict[str, nn.Module]:
    parts = json.loads((folder / "model_index.json").read_text())
    made: dict[str, nn.Module] = {}
    for name, part in parts.items():
        if not isinstance(part, list) or not part[0] or name in TRAINED:
            continue
        kind = getattr(importlib.import_module(part[0]), part[1], None)
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            continue
        source = folder / name
        with torch.device("meta"):
            if part[0] == "diffusers":
                module = kind.from_config(kind.load_config(source))  # type: ignore[attr-defined]
            else:
                module = kind(kind.config_class.from_pretrained(source))  # type: ignore[attr-defined]
        module.to(dtype).eval()
        put_before(module, StandIn)
        module.__dict__.update(_name=name, _source=source, _answer=answer)
        made[name] = module
    return made


# Questions and answers as text and tensors


def _question(name: str, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    digest = hashlib.blake2b(digest_size=16)

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            plain = value.detach().to("cpu").contiguous()
            digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
        elif isinstance(value, Mapping):
            for key in sorted(value):
                digest.update(str(key).encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            for part in value:
                add(part)
        else:
            digest.update(repr(value).encode())

    add(args)
    add(kwargs)
    return f"{name}.{method} {digest.hexdigest()}"


def _freeze(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        plain = value.detach().to("cpu").contiguous().clone()
        name = _question("tensor", "of", (plain,), {}).split()[1]
        tensors.setdefault(name, plain)
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"output": {key: _freeze(part, tensors) for key, part in value.items()}}
    if isinstance(value, (list, tuple)):
        return {"tuple": [_freeze(part, tensors) for part in value]}
    if type(value).__name__ == "DiagonalGaussianDistribution":
        return {"gaussian": _freeze(value.parameters, tensors)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"plain": value}
    return {"missing": type(value).__name__}  # such as a cache of keys: nobody has asked for it yet


def _thaw(frozen: dict[str, Any], tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    ((kind, value),) = frozen.items()
    if kind == "tensor":
        return tensors[value].to(device)
    if kind == "output":
        parts = {key: _thaw(part, tensors, device) for key, part in value.items() if "missing" not in part}
        return _Output(parts)
    if kind == "tuple":
        return tuple(_thaw(part, tensors, device) for part in value)
    if kind == "gaussian":
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        return DiagonalGaussianDistribution(_thaw(value, tensors, device))
    return value


class _Output(dict):
    """Entries by name, as attributes, and by number, as the libraries' outputs have them."""

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, (int, slice)):
            return tuple(value for value in self.values() if value is not None)[key]
        return super().__getitem__(key)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None
