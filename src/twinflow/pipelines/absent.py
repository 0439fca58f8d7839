"""A transformer whose weights are in another process: here it has shapes alone, and shows what the other one computes.

Of the processes that will share a network's weights only one has to read them. The others open the same pipeline around
an empty transformer, and make the same calls in the same order; what it answers, and what is found by watching its
insides, is asked of the one that has the weights (:data:`Share`). Once they have got their slices, :func:`settle` makes
it an ordinary transformer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from twinflow.errors import TwinflowError
from twinflow.pipelines.weightless import Weightless, put_before, take_back

# Does the work where the weights are, and returns what came out in all processes; all of them have to call it.
Share = Callable[[Callable[[], Any]], Any]


@dataclass(frozen=True, kw_only=True)
class Together:
    """Processes that open one pipeline; ``here``: whether this one has the weights."""

    share: Share
    here: bool


def absent_transformer(path_or_id: str) -> Any:
    """The transformer of a stock pipeline, without its weights: no file of them is opened."""
    import diffusers

    try:
        parts = diffusers.DiffusionPipeline.load_config(path_or_id)
        kind: Any = getattr(diffusers, parts["transformer"][1])
        config = kind.load_config(path_or_id, subfolder="transformer")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise TwinflowError(
            f"{path_or_id} is not a diffusers pipeline with a transformer: {error}"
        ) from error
    with without_weights():
        transformer = kind.from_config(config)
    put_before(transformer, Weightless)
    return transformer.eval()


@contextmanager
def without_weights() -> Iterator[None]:
    """Parameters that modules get meanwhile have no data; what they calculate for themselves has."""
    register = nn.Module.register_parameter

    def empty(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = empty  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def opened_together(transformer: Any, together: Together) -> None:
    """Let ``transformer`` answer in all processes what that one answers which has the weights, until it settles."""
    stock = transformer.forward
    dtypes = together.share(lambda: {name: held.dtype for name, held in _held(transformer)})
    for name, held in list(_held(transformer)) if not together.here else []:
        if held.dtype != dtypes[name]:
            place, _, own = name.rpartition(".")
            cast = held.detach().to(dtypes[name])
            if isinstance(held, nn.Parameter):
                cast = nn.Parameter(cast, requires_grad=held.requires_grad)
            setattr(transformer.get_submodule(place), own, cast)

    def forward(*arguments: Any, **named: Any) -> Any:
        said = together.share(lambda: tree_map_only(Tensor, Tensor.cpu, stock(*arguments, **named)))
        return tree_map_only(Tensor, lambda value: value.to(transformer.device), said)

    transformer.__dict__["forward"] = forward
    transformer.__dict__["_together"] = together


def _held(transformer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name: tables of positions are read in the dtype of the weights too."""
    yield from transformer.named_parameters()
    yield from transformer.named_buffers()


def together_of(transformer: nn.Module) -> Together | None:
    """The processes that ``transformer`` is opened together with, until it settles."""
    found: Together | None = transformer.__dict__.get("_together")
    return found


def where_the_weights_are(transformer: nn.Module, work: Callable[[], Any]) -> Any:
    """The result of ``work``, which watches the insides of ``transformer``."""
    together = together_of(transformer)
    return work() if together is None else together.share(work)


def settle(transformer: Any) -> None:
    """Its weights are here, or its slices of them: it answers for itself from now on."""
    for name in ("forward", "_together"):
        transformer.__dict__.pop(name, None)
    take_back(transformer)
