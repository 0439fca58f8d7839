"""Networks as the fields of a run: in its precision, and counted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twinflow.conditions import to_device
from twinflow.data.loader import Examples
from twinflow.objectives import Field
from twinflow.objectives.discriminator import features_of
from twinflow.objectives.objective import working_dtype
from twinflow.training.accountant import Accountant
from twinflow.training.protocols import Trainable
from twinflow.training.step import AutocastField


class Fields:
    """``half``: whether the maths of calls is in bf16, by autocast."""

    def __init__(
        self, pipe: Trainable, *, half: bool, device: torch.device, accountant: Accountant | None
    ) -> None:
        self.pipe, self.half, self.device, self.accountant = pipe, half, device, accountant

    def of(self, network: nn.Module) -> Field:
        """That of ``network``, in the precision of the run."""
        return self._autocast(self.pipe.field_of(network))

    def counted(self, name: str, network: nn.Module | None = None) -> Field:
        """The same; its evaluations are counted as those of the network ``name``. None: of the student."""
        field = self._autocast(self.pipe.field) if network is None else self.of(network)
        return field if self.accountant is None else self.accountant.field(name, field)

    @torch.no_grad()
    def features(self, network: nn.Module, examples: Examples) -> list[Tensor]:
        """What ``network`` shows of the first example."""
        one = examples.batch([0], None)
        x, cond = to_device(one.x, self.device), to_device(one.cond, self.device)
        t = torch.ones(1, dtype=working_dtype(x), device=self.device)
        return features_of(self.of(network), x, t, cond, dtype=x.dtype)

    def _autocast(self, field: Field) -> Field:
        return AutocastField(field, device=self.device, dtype=torch.bfloat16) if self.half else field
