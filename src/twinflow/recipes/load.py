"""From YAML files and dotted overrides to a validated recipe, and back."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from yaml import YAMLError

from twinflow.errors import TwinflowError
from twinflow.recipes.data import (
    DigitsData,
    FolderData,
    PromptsData,
    ShapeWorldData,
    TableData,
    VideoData,
)
from twinflow.recipes.messages import disallowed, unknown_key
from twinflow.recipes.objective import OBJECTIVES, resolve_objective, with_preset
from twinflow.recipes.sections import Recipe

DATA_KINDS: dict[str, type[BaseModel]] = {
    "shapeworld": ShapeWorldData,
    "digits": DigitsData,
    "folder": FolderData,
    "dataset": TableData,
    "video": VideoData,
    "prompts": PromptsData,
}
# A section of another kind has other keys: it replaces the one that it extends instead of merging with it.
KIND_KEYS = {"objective": "name", "data": "kind"}


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read the recipe ``path`` and what it extends, apply ``overrides`` (``"train.steps=100"``), validate.

    ``TwinflowError`` names each bad key, its value and what is allowed.
    """
    return changed_recipe(_read_layers(Path(path), ()), overrides, source=str(path))


def changed_recipe(layers: Mapping[str, Any], overrides: Iterable[str], *, source: str) -> Recipe:
    """A recipe of plain dictionaries, lists and numbers, with ``overrides`` on top."""
    changes = parse_overrides(overrides)
    return make_recipe(_merge(_with_default_roles(layers, changes), changes), source=source)


def make_recipe(raw: Mapping[str, Any], *, source: str = "recipe") -> Recipe:
    """A recipe of plain dictionaries, lists and numbers."""
    try:
        return Recipe.model_validate(_with_shorthands(raw))
    except ValidationError as error:
        raise TwinflowError(explained(error, source=source)) from error


def explained(
    error: ValidationError, *, source: str, root: type[BaseModel] = Recipe, what: str = "recipe"
) -> str:
    """What is wrong with ``source``, a line for each thing: the key, its value, and what is allowed.

    ``root``: what it should have been, a recipe or ``what`` else.
    """
    return "\n  ".join([f"{source}:", *(_describe(problem, root, what) for problem in error.errors())])


def recipe_dict(recipe: Recipe) -> dict[str, Any]:
    """All settings of ``recipe``, defaults included, as plain dictionaries, lists and numbers."""
    return recipe.model_dump(mode="json")


def recipe_yaml(recipe: Recipe) -> str:
    """YAML that :func:`load_recipe` reads back to an equal recipe."""
    return OmegaConf.to_yaml(OmegaConf.create(recipe_dict(recipe)))


def _read_layers(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    """The mapping in ``path``, merged over the recipe that its ``extends`` names, relative to it."""
    if not path.is_file():
        named = f", which {children[-1]} extends" if children else ""
        raise TwinflowError(f"there is no recipe {path}{named}{_instead(path)}")
    if path.resolve() in children:
        raise TwinflowError(f"{path} extends itself by way of {', '.join(map(str, children))}")
    try:
        raw = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OmegaConfBaseException, YAMLError, OSError, UnicodeDecodeError) as error:
        raise TwinflowError(f"{path} is not a readable recipe: {error}{_about_tabs(path)}") from error
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise TwinflowError(f"{path} is not a recipe: it must consist of `key: value` lines")
    layer: dict[str, Any] = {str(key): value for key, value in raw.items()}
    parent = layer.pop("extends", None)
    if parent is None:
        return _with_shorthands(layer)
    if not isinstance(parent, str):
        raise TwinflowError(f"{path}: {disallowed('extends', parent, 'it must be the path of a recipe')}")
    return _merge(_read_layers(path.parent / parent, (*children, path.resolve())), layer)


def _instead(path: Path) -> str:
    """What was meant by a recipe that is no file."""
    if path.is_dir():
        written = path / "recipe.yaml"
        return f": it is a folder{f'. Its recipe is {written}' if written.is_file() else ''}"
    return ": the recipe comes first, then changes such as train.steps=100" if "=" in path.name else ""


def _about_tabs(path: Path) -> str:
    try:
        tabs = any("\t" in line[: len(line) - len(line.lstrip())] for line in path.open(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return ""
    return "\nYAML is indented with spaces, and there are tabs" if tabs else ""


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """``["train.steps=100"]`` as the sections that it changes."""
    merged: dict[str, Any] = {}
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not all(key.split(".")):
            raise TwinflowError(
                f"{override!r} is not an override: write key=value without spaces, such as train.steps=100"
            )
        try:
            raw = OmegaConf.to_container(OmegaConf.from_dotlist([override]), resolve=True)
        except (OmegaConfBaseException, YAMLError) as error:
            raise TwinflowError(f"the value of {override!r} can't be read: {error}") from error
        merged = _merge(merged, {str(k): v for k, v in raw.items()} if isinstance(raw, dict) else {})
    return merged


def _with_default_roles(raw: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``raw`` with the objective's default roles spelt out, if ``changes`` change single ones of them.

    In a mapping of roles those that are not named get no rows. `objective.roles.fake=2` means one role alone.
    """
    sections = [section for section in (raw.get("objective"), changes.get("objective")) if section]
    if not all(isinstance(section, Mapping) for section in sections):
        return dict(raw)
    objective = {key: value for section in sections for key, value in section.items()}
    if not (len(sections) == 2 and "roles" in sections[1]):
        return dict(raw)
    if "roles" in sections[0] and "preset" not in sections[1]:
        return dict(raw)
    if objective.get("name") not in OBJECTIVES:
        return dict(raw)  # the error comes with the validation
    named = with_preset({key: objective[key] for key in ("name", "preset") if key in objective})
    if "preset" in named:
        return dict(raw)  # and this one
    default = resolve_objective(named).get("roles")
    return dict(raw) if default is None else {**raw, "objective": {**sections[0], "roles": default}}


def _with_shorthands(raw: Mapping[str, Any]) -> dict[str, Any]:
    """``model: path`` and ``data: folder`` stand for the sections with that path, a preset for its settings."""
    full = dict(raw)
    if isinstance(full.get("objective"), Mapping):
        full["objective"] = with_preset(full["objective"])
    if isinstance(full.get("model"), str):
        full["model"] = {"path": full["model"]}
    if isinstance(full.get("data"), str):
        full["data"] = {"kind": "folder", "path": full["data"]}
    return full


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the keys of ``over``, section by section."""
    merged = _with_shorthands(base)
    for section, value in _with_shorthands(over).items():
        kind = KIND_KEYS.get(section)
        old = merged.get(section)
        if section == "objective" and isinstance(value, Mapping) and isinstance(old, Mapping):
            # A preset without a name is one of the objective that it changes.
            value = with_preset({"name": old["name"], **value} if "name" in old else value)
        other_kind = (
            kind is not None
            and isinstance(value, Mapping)
            and isinstance(old, Mapping)
            and kind in value
            and kind in old
            and value[kind] != old[kind]
        )
        merged[section] = value if other_kind else _deep_merge(old, value)
    return merged


def _deep_merge(old: Any, new: Any) -> Any:
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    return {**old, **{key: _deep_merge(old.get(key), value) for key, value in new.items()}}


def _describe(problem: Any, root: type[BaseModel], noun: str) -> str:
    """One line about one of pydantic's errors."""
    path = list(problem["loc"])
    # pydantic puts the name of the union's member behind "data".
    kind = path.pop(1) if path[0:1] == ["data"] and path[1:2] and path[1] in DATA_KINDS else None
    key = ".".join(map(str, path))
    what = problem["type"]
    if what == "value_error":  # of our own validators, whose messages name the key
        return str(problem["ctx"]["error"])
    if what == "extra_forbidden":
        keys, where = _keys_at(root, path[:-1], kind), ".".join(map(str, path[:-1]))
        return unknown_key(str(path[-1]), keys, where=where, whole=noun)
    if what == "missing":
        return f"{key} is missing: the {noun} must set it"
    if what == "union_tag_not_found":
        return f"{key}.kind is missing: use one of {', '.join(DATA_KINDS)}"
    if what == "union_tag_invalid":
        return unknown_key(str(problem["ctx"]["tag"]), DATA_KINDS, where=f"{key}.kind", noun="kind")
    return disallowed(key, problem["input"], re.sub("[Tt]uple", "list", problem["msg"]))


def _keys_at(root: type[BaseModel], path: list[Any], kind: str | None) -> list[str]:
    """The keys allowed in the section ``path`` of ``root``."""
    section, names = root, iter(path)
    for name in names:
        if kind is not None and name == "data":
            section = DATA_KINDS[kind]
            continue
        hint: Any = section.model_fields[name].annotation
        if get_origin(hint) is dict:  # of sections, by names that are free
            next(names)
            hint = get_args(hint)[1]
        members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        section = next(m for m in members if isinstance(m, type) and issubclass(m, BaseModel))
    return list(section.model_fields)
