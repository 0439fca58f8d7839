"""The networks of a run: the student, and those that its objective declares beside it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from twinflow.objectives import Field, NetworkSpec, Objective
from twinflow.recipes.sections import Optimizer
from twinflow.training.accountant import Holdings
from twinflow.training.averages import Averages
from twinflow.training.ema import ParameterAverage, trained_parameters
from twinflow.training.optim import Optimizers
from twinflow.training.shards import leaf, local
from twinflow.training.weights import load_weights, trained_weights

Features = Callable[[nn.Module], list[Tensor]]  # those that a network shows of one row


@dataclass(kw_only=True)
class Trained:
    """A network that has an optimiser."""

    parameters: list[nn.Parameter]
    leaves: list[
        nn.Parameter
    ]  # what of them is in this process, as the optimisers see it: themselves, or slices
    optimizers: Optimizers
    lr: float = 1.0  # factor on the learning rate of the run

    @classmethod
    def of(cls, network: nn.Module, settings: Optimizer, *, lr: float = 1.0, seed: int = 0) -> Trained:
        """``seed``: of the stochastic rounding."""
        parameters = trained_parameters(network)
        leaves = {name: leaf(parameter) for name, parameter in parameters.items()}
        return cls(
            parameters=list(parameters.values()),
            leaves=list(leaves.values()),
            optimizers=Optimizers(
                leaves,
                settings,
                seed=seed,
                cut={name: p for name, p in parameters.items() if isinstance(p, DTensor)},
            ),
            lr=lr,
        )

    def gradients(self) -> list[Tensor]:
        """Those that the backward pass has left, of the leaves."""
        for parameter, own in zip(self.parameters, self.leaves, strict=True):
            if own is not parameter:
                own.grad = None if parameter.grad is None else local(parameter.grad)
        return [own.grad for own in self.leaves if own.grad is not None]

    def update(self) -> None:
        """Step, and drop the gradients."""
        self.optimizers.step()
        self.optimizers.zero_grad()
        for parameter in self.parameters:
            parameter.grad = None


class Companions:
    """The networks beside the student: made at the start of a run, saved and restored with it."""

    def __init__(
        self,
        objective: Objective,
        student: nn.Module,
        settings: Optimizer,
        *,
        teacher: nn.Module | None,
        features: Features,
        seed: int,
    ) -> None:
        """``student`` as it is now is what copies start from: make them before a checkpoint changes its weights.

        New networks are built from random numbers of their own, seeded by ``seed``.
        """
        self.specs: dict[str, NetworkSpec] = objective.networks()
        self.networks: dict[str, nn.Module] = {}
        self.trained: dict[str, Trained] = {}
        self._averages: dict[str, ParameterAverage] = {}
        self._student = student
        for name, spec in self.specs.items():
            if spec.kind == "average":
                self._averages[name] = ParameterAverage(student, decay=spec.decay)
                self.networks[name] = self._averages[name].network
                continue
            self.networks[name] = self._made(spec, teacher, features, seed)
            if spec.trained:
                self.trained[name] = Trained.of(self.networks[name], settings, lr=spec.lr, seed=seed)

    def _made(self, spec: NetworkSpec, teacher: nn.Module | None, features: Features, seed: int) -> nn.Module:
        if spec.build is None:
            twin = twin_of(self._student)
            return twin if spec.trained else twin.requires_grad_(False)
        shown: list[Tensor] = []
        if spec.features_of is not None:
            source = teacher if spec.features_of == "teacher" else self.networks[spec.features_of]
            assert source is not None, "an objective that has heads on the teacher has a teacher"
            shown = features(source)
        device = next(self._student.parameters()).device
        # Of this GPU alone: asked for the others' random numbers, each process would start a context on each GPU.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            return spec.build(shown).to(device)

    def given(self, field_of: Callable[[str, nn.Module], Field]) -> dict[str, Any]:
        """What the objective's ``step`` takes as ``networks``: fields of copies, by ``field_of``, and new modules."""
        return {
            name: network if self.specs[name].kind == "new" else field_of(name, network)
            for name, network in self.networks.items()
        }

    @torch.no_grad()
    def refresh(self, names: tuple[str, ...]) -> None:
        """Overwrite networks of kind "stage" with the student's weights."""
        if not names:
            return  # as in most steps: asking a large network for its weights takes a while
        weights = trained_weights(self._student)
        for name in names:
            own = dict(self.networks[name].named_parameters()) | dict(self.networks[name].named_buffers())
            for key, weight in weights.items():
                own[key].copy_(weight)

    def student_moved(self) -> None:
        """After a step of the student."""
        for average in self._averages.values():
            average.update()

    def holdings(self, trained: Mapping[str, Trained], averages: Averages) -> Holdings:
        """What a run holds in memory: the student, these networks, and the ``averages`` of the student."""
        copies = [copy.network for copy in (averages.drawn, averages.taught) if copy is not None]
        frozen = [] if averages.frozen is None else [averages.frozen]
        return Holdings.of(
            [self._student, *self.networks.values(), *copies, *frozen],
            [p for own in trained.values() for p in own.parameters],
            [tensor for own in trained.values() for tensor in own.optimizers.state_dict()[0].values()],
        )

    # Resuming

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Tensors by file, and scalars: all that changes in the course of a run."""
        tensors: dict[str, dict[str, Tensor]] = {}
        scalars: dict[str, Any] = {}
        for name, network in self.networks.items():
            if name in self._averages:
                tensors[f"network_{name}"], scalars[name] = self._averages[name].state_dict()
                continue
            tensors[f"network_{name}"] = self._changing(network)
            if name in self.trained:
                tensors[f"optimizer_{name}"], scalars[name] = self.trained[name].optimizers.state_dict()
        return tensors, scalars

    def load_state(self, tensors: Mapping[str, dict[str, Tensor]], scalars: Mapping[str, Any]) -> None:
        """Fill all networks in place; ``KeyError`` or ``ValueError`` if these are not the same networks."""
        for name, network in self.networks.items():
            saved = tensors[f"network_{name}"]
            if name in self._averages:
                self._averages[name].load_state_dict(saved, scalars[name])
            elif name in self.trained:
                load_weights(network, saved)
                self.trained[name].optimizers.load_state_dict(tensors[f"optimizer_{name}"], scalars[name])
            else:
                with torch.no_grad():
                    for key, value in self._changing(network).items():
                        value.copy_(saved[key])

    def _changing(self, network: nn.Module) -> dict[str, Tensor]:
        """What of ``network`` can change: of a stage's network, what the student trains."""
        if any(p.requires_grad for p in network.parameters()):
            return trained_weights(network)
        names = trained_weights(self._student)
        own = dict(network.named_parameters()) | dict(network.named_buffers())
        return {name: own[name] for name in names}


def twin_of(network: nn.Module) -> nn.Module:
    """A copy of ``network`` whose trained parameters are its own; the others are shared."""
    shared = {id(p): p for p in network.parameters() if not p.requires_grad}
    twin: nn.Module = copy.deepcopy(network, shared)  # type: ignore[arg-type]
    return twin
