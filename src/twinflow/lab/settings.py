"""What a comparison consists of: the part of the recipe that all runs share, the methods, the budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError, field_validator, model_validator
from yaml import YAMLError

from twinflow.config import Recipe, make_recipe
from twinflow.errors import TwinflowError
from twinflow.recipes.load import explained, parse_overrides
from twinflow.recipes.section import AtLeastOne, Section, Seed
from twinflow.training.accountant import Budget

Positive = Annotated[float, Field(gt=0, strict=False)]


class BudgetSection(Section):
    """What each run may cost, see :class:`twinflow.training.accountant.Budget`."""

    unit: Literal["steps", "images", "rows", "flops", "seconds"]
    amount: Positive


class Search(Section):
    """The small search that every method is tuned with: all combinations, on the first seed."""

    keys: dict[str, list[Any]] = Field(
        default_factory=dict
    )  # values by the recipe's key: {optimizer.lr: [1.0e-4, 5.0e-4]}
    # Of the budget, for each combination. Short runs favour high rates. With 1 the best is the first seed's run itself.
    share: Annotated[float, Field(gt=0, le=1, strict=False)] = 1.0


class Evaluation(Section):
    """How models are scored."""

    level: str = "tiny"
    images_per_task: AtLeastOne = 50
    seed: Seed = 0
    nfe: Annotated[tuple[AtLeastOne, ...], Field(strict=False, min_length=1)] = (1, 2, 4)
    base_nfe: AtLeastOne = 100  # of the base that scores are compared with


class Method(Section):
    """One row of the leaderboard: sections that replace or extend those of ``run``."""

    objective: dict[str, Any]
    recipe: dict[str, Any] = Field(
        default_factory=dict
    )  # further keys: {optimizer: {lr: 1.0e-4}, caption_dropout: 0.1}
    sampler: dict[str, Any] = Field(default_factory=dict)  # of twinflow.sampling.sample: {style: any}


class Lab(Section):
    """A whole comparison, written to the folder ``output``."""

    run: dict[str, Any]  # the recipe that all runs share, without objective, seed, steps and output
    methods: Annotated[dict[str, Method], Field(min_length=1)]
    budget: BudgetSection
    seeds: Annotated[tuple[Seed, ...], Field(strict=False, min_length=1)] = (0, 1, 2)
    search: Search = Search()
    evaluation: Evaluation = Evaluation()
    compared_with: str = "twinflow"  # the method that memory is compared with
    output: Annotated[str, Field(min_length=1)]

    @field_validator("methods")
    @classmethod
    def _names(cls, methods: dict[str, Method]) -> dict[str, Method]:
        for name in methods:
            if not name.replace("_", "").replace("-", "").isalnum() or name == "base":
                raise ValueError(
                    f"methods.{name} can't be a folder's name: use letters, digits, - and _, and not 'base'"
                )
        return methods

    @model_validator(mode="after")
    def _the_search_chooses_alone(self) -> Lab:
        for name, method in self.methods.items():
            own = OmegaConf.create({**method.recipe, "objective": method.objective})
            for key in self.search.keys:
                if OmegaConf.select(own, key) is not None:
                    raise ValueError(
                        f"methods.{name} sets {key}, which the search chooses: leave it out of one of them"
                    )
        return self

    @model_validator(mode="after")
    def _every_run_is_possible(self) -> Lab:
        for name in self.methods:
            for choice in self.choices():
                self.recipe(name, seed=self.seeds[0], steps=1_000_000, folder=Path("x"), choice=choice)
        return self

    def choices(self) -> list[dict[str, Any]]:
        """All combinations of the search."""
        keys = list(self.search.keys)
        return [dict(zip(keys, values, strict=True)) for values in product(*self.search.keys.values())]

    def recipe(
        self, method: str, *, seed: int, steps: int, folder: Path, choice: Mapping[str, Any] | None = None
    ) -> Recipe:
        """The recipe of one run. A run of fewer steps than it would warm up warms up all the time."""
        own = self.methods[method]
        raw = OmegaConf.merge(
            OmegaConf.create(self.run),
            OmegaConf.create(own.recipe),
            OmegaConf.create({"objective": own.objective, "output": str(folder)}),
            OmegaConf.create({"train": {"seed": seed, "steps": steps}}),
        )
        for key, value in (choice or {}).items():
            OmegaConf.update(raw, key, value)
        warmup = OmegaConf.select(raw, "optimizer.warmup_steps", default=0)
        if isinstance(warmup, int) and warmup > steps:
            OmegaConf.update(raw, "optimizer.warmup_steps", steps)
        plain = OmegaConf.to_container(raw, resolve=True)
        assert isinstance(plain, dict)
        return make_recipe({str(key): value for key, value in plain.items()}, source=f"methods.{method}")

    def budget_of(self, share: float = 1.0) -> Budget:
        return Budget(unit=self.budget.unit, amount=self.budget.amount * share)


def load_lab(path: str | Path, overrides: Iterable[str] = (), *, size: str | None = None) -> Lab:
    """Read the comparison ``path``; ``size`` names an entry of its ``sizes``, overrides that come before yours."""
    if not Path(path).is_file():
        raise TwinflowError(f"there is no comparison {path}")
    try:
        raw = OmegaConf.load(path)
        if not isinstance(raw, DictConfig):
            raise TwinflowError(f"{path} is not a comparison: it must consist of `key: value` lines")
        sizes = raw.pop("sizes", {}) or {}
        if size is not None and size not in sizes:
            raise TwinflowError(
                f"--size {size!r} is not in {path}: it has {', '.join(map(str, sizes)) or 'no sizes'}"
            )
        chosen = [str(change) for change in sizes[size]] if size is not None else []
        merged = OmegaConf.merge(raw, parse_overrides([*chosen, *overrides]))
        plain = OmegaConf.to_container(merged, resolve=True)
        return Lab.model_validate(plain)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise TwinflowError(f"{path} is not a readable comparison: {error}") from error
    except ValidationError as error:
        raise TwinflowError(explained(error, source=str(path), root=Lab, what="comparison")) from error
