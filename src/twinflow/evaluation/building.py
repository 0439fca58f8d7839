"""Benchmarks and measures built as the command line asks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twinflow.errors import TwinflowError
from twinflow.evaluation.benchmark import Benchmark, Measure
from twinflow.evaluation.registry import entries


def build(
    names: Sequence[str], *, common: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]]
) -> tuple[list[Benchmark], list[Measure]]:
    """Benchmarks and measures called ``names``. ``common`` options go to all that know them, ``own`` by name.

    A file of prompts that no benchmark takes brings the benchmark ``prompts`` along; measures need a benchmark.
    """
    known = entries()
    for name in [*names, *own]:
        if name not in known:
            raise TwinflowError(
                f"--benchmark {name!r} is not known: there are {', '.join(known)}; see `twinflow eval --list`"
            )
    chosen = [known[name] for name in dict.fromkeys(names)]
    takes_prompts = any(entry.kind == "benchmark" and "prompts" in entry.options for entry in chosen)
    if "prompts" in common and not takes_prompts:
        chosen.insert(0, known["prompts"])
    if not any(entry.kind == "benchmark" for entry in chosen):
        raise TwinflowError(
            f"{', '.join(names)} measures pictures, but says not which: add a benchmark, or --prompts FILE"
        )
    left = set(own) - {entry.name for entry in chosen}
    if left:
        raise TwinflowError(f"--with sets an option of {min(left)!r}, which is not among the benchmarks")
    for name in common:
        if not any(name in entry.options for entry in chosen):
            theirs = ", ".join(entry.name for entry in chosen)
            raise TwinflowError(
                f"--{name.replace('_', '-')} is no option of {theirs}: leave it out, or see --list"
            )
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
