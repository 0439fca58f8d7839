"""The house stands: imports only point down, and the maths knows nothing of the world around it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import twinflow

ROOT = Path(twinflow.__file__).parent

# From the top down. A module imports modules of lower layers, and of its own package, alone.
LAYERS: tuple[set[str], ...] = (
    {"__main__"},
    {"cli"},
    {"demo"},
    {"quickstart", "lab"},
    {"report", "launch"},
    {"planner"},
    {"evaluation"},
    {"export"},
    {"training"},
    {"config"},
    {"recipes"},
    {"data"},
    {"pipelines"},
    {"objectives"},
    {"sampling"},
    {"flow", "conditions", "field", "assets", "hub", "tensor_files"},
    {"errors", "quantities"},
)
HEIGHT = {name: len(LAYERS) - i for i, names in enumerate(LAYERS) for name in names}

PURE = ("flow", "conditions", "field", "sampling", "objectives")
# Models, files, devices, processes: what pure tensor code has no business with.
WORLD = {
    "accelerate",
    "datasets",
    "diffusers",
    "io",
    "multiprocessing",
    "os",
    "pathlib",
    "peft",
    "PIL",
    "safetensors",
    "subprocess",
    "torch.cuda",
    "torch.distributed",
    "transformers",
}


def imported(source: str) -> Iterator[str]:
    """Dotted names of everything imported, wherever in the file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = sorted(ROOT.rglob("*.py"))


def part_of(file: Path) -> str:
    """``"objectives"`` for twinflow/objectives/rcgm.py, ``"flow"`` for twinflow/flow.py."""
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_down(file):
    part = part_of(file)
    if part == "__init__":  # the package's own names may come from anywhere but the command line
        assert not any(name.startswith("twinflow.cli") for name in imported(file.read_text()))
        return
    assert part in HEIGHT, f"twinflow.{part} has no layer yet: give it one in LAYERS and docs/architecture.md"
    for name in imported(file.read_text()):
        package, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if package != "twinflow" or other in (part, "__version__"):
            continue
        assert other in HEIGHT, (
            f"{file.name} imports {name} from the package's top: import it from its module"
        )
        assert HEIGHT[other] < HEIGHT[part], f"{part} must not import {name}"


@pytest.mark.parametrize("part", PURE)
def test_the_maths_knows_nothing_of_the_world(part):
    for file in FILES:
        if part_of(file) != part:
            continue
        for name in imported(file.read_text()):
            found = {world for world in WORLD if name == world or name.startswith(f"{world}.")}
            assert not found, f"{file.name} imports {name}"


def test_a_wrong_import_would_be_seen():
    names = list(imported("def f():\n    from twinflow.cli import app\n    import diffusers.models"))
    assert names == ["twinflow.cli.app", "diffusers.models"]
    assert HEIGHT["cli"] > HEIGHT["report"] > HEIGHT["training"] > HEIGHT["objectives"] > HEIGHT["flow"]
