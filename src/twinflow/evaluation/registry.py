"""Benchmarks and measures by name: what each is, what it needs, how it is built. Listing builds nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from twinflow.errors import TwinflowError
from twinflow.evaluation.benchmark import Benchmark, Measure, Requirement

# Modules with an ENTRY; one that this installation lacks is left out.
_MODULES = (
    "twinflow.evaluation.geneval.benchmark",
    "twinflow.evaluation.dpg.benchmark",
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """``build(**options)`` makes it; options come from the command line as text."""

    name: str
    kind: Literal["benchmark", "measure"]
    summary: str  # one sentence
    build: Callable[..., Benchmark | Measure]
    options: Mapping[str, str] = field(default_factory=dict)  # name -> what it is, with its default
    requires: Sequence[Requirement] = ()


def _shapeworld(**options: Any) -> Benchmark:
    from twinflow.evaluation.shapeworld_benchmark import ShapeWorldBenchmark

    return ShapeWorldBenchmark(**_numbers(options, "images_per_task", "seed"))


def _prompts(**options: Any) -> Benchmark:
    from twinflow.evaluation.prompt_file import PromptFile

    if "prompts" not in options:
        raise TwinflowError("the benchmark 'prompts' needs a file of prompts: --prompts FILE")
    return PromptFile(**_numbers(options, "images_per_prompt", "seed"))


def _numbers(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """``options`` with those called ``names`` as whole numbers."""
    result = dict(options)
    for name in names:
        if name in options:
            try:
                result[name] = int(options[name])
            except ValueError as error:
                raise TwinflowError(f"{name} must be a whole number, got {options[name]!r}") from error
    return result


_SEED = "seed of the noise, and of the order of the captions (0)"
_OWN = (
    Entry(
        name="shapeworld",
        kind="benchmark",
        summary="Coloured shapes with captions of GenEval's six kinds, and a verifier that is exact.",
        build=_shapeworld,
        options={
            "level": "tiny or full (tiny)",
            "images_per_task": "pictures of each of the six tasks (200)",
            "seed": _SEED,
        },
        requires=(
            Requirement(what="prompts and verifier", size="0", licence="Apache-2.0", source="in the package"),
        ),
    ),
    Entry(
        name="prompts",
        kind="benchmark",
        summary="Any file of prompts: has no score of its own, measures are taken on its pictures.",
        build=_prompts,
        options={
            "prompts": 'a file with a prompt a line, or .jsonl with a "prompt" in each object',
            "images_per_prompt": "pictures of each prompt (1)",
            "seed": "seed of the noise (0)",
        },
    ),
)


def entries() -> dict[str, Entry]:
    """All that this installation has, by name."""
    found = {entry.name: entry for entry in _OWN}
    for module in _MODULES:
        try:
            entry = importlib.import_module(module).ENTRY
        except ModuleNotFoundError as error:
            if error.name is None or not module.startswith(error.name):
                raise  # it is there, and something that it needs is not
            continue
        found[entry.name] = entry
    return found


def build(
    names: Sequence[str], *, common: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]]
) -> tuple[list[Benchmark], list[Measure]]:
    """Benchmarks and measures called ``names``. ``common`` options go to all that know them, ``own`` by name.

    A file of prompts brings the benchmark ``prompts`` along; measures need at least one benchmark.
    """
    known = entries()
    for name in [*names, *own]:
        if name not in known:
            raise TwinflowError(
                f"--benchmark {name!r} is not known: there are {', '.join(known)}; see `twinflow eval --list`"
            )
    chosen = [known[name] for name in dict.fromkeys(names)]
    if "prompts" in common and not any(entry.name == "prompts" for entry in chosen):
        chosen.insert(0, known["prompts"])
    if not any(entry.kind == "benchmark" for entry in chosen):
        raise TwinflowError(
            f"{', '.join(names)} measures pictures, but says not which: add a benchmark, or --prompts FILE"
        )
    left = set(own) - {entry.name for entry in chosen}
    if left:
        raise TwinflowError(f"--with sets an option of {min(left)!r}, which is not among the benchmarks")
    benchmarks: list[Benchmark] = []
    measures: list[Measure] = []
    for entry in chosen:
        options = {name: value for name, value in common.items() if name in entry.options}
        for name, value in own.get(entry.name, {}).items():
            if name not in entry.options:
                allowed = ", ".join(entry.options) or "none"
                raise TwinflowError(
                    f"--with {entry.name}.{name}: there is no such option; there are: {allowed}"
                )
            options[name] = value
        made = entry.build(**options)
        benchmarks += [made] if isinstance(made, Benchmark) else []
        measures += [made] if isinstance(made, Measure) else []
    return benchmarks, measures
