"""The ``objective`` section: a name and the fields of that objective's dataclass, so no knob is declared twice."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from importlib import import_module
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from twinflow.recipes.messages import disallowed, unknown_key

# Imported when asked for: the parts of a pipeline bring objectives of their own.
OBJECTIVES = {
    "twinflow": "twinflow.objectives:TwinFlow",
    "rcgm": "twinflow.objectives:RCGM",
    "flow_matching": "twinflow.objectives:FlowMatching",
    "consistency_training": "twinflow.objectives:ConsistencyTraining",
    "consistency_distillation": "twinflow.objectives:ConsistencyDistillation",
    "scm": "twinflow.objectives:SCM",
    "mean_flow": "twinflow.objectives:MeanFlow",
    "progressive_distillation": "twinflow.objectives:ProgressiveDistillation",
    "dmd": "twinflow.objectives:DMD",
    "dmd2": "twinflow.objectives:DMD2",
    "sana_sprint": "twinflow.objectives:SanaSprint",
    "reconstruction": "twinflow.training.parts:Reconstruction",
    "caption_reading": "twinflow.training.parts:CaptionReading",
}


def resolve_objective(section: Mapping[str, Any]) -> dict[str, Any]:
    """``section`` with every setting of its objective spelt out; ValueError names what is wrong with it."""
    objective = build_objective(section)
    return {"name": section["name"], **_plain(asdict(objective))}


def with_preset(section: Mapping[str, Any]) -> dict[str, Any]:
    """``section`` with the settings that its ``preset`` stands for; what it says itself comes before them.

    Without a preset, or with one that is not known, it is what it was: :func:`build_objective` says what is wrong.
    """
    name, wanted = section.get("name"), section.get("preset")
    if not (isinstance(name, str) and isinstance(wanted, str)):
        return dict(section)
    from twinflow.objectives.presets import PRESETS, preset

    if wanted not in PRESETS.get(name, {}):
        return dict(section)
    own = {key: value for key, value in section.items() if key not in ("name", "preset")}
    return {"name": name, **preset(name, wanted), **own}


def _refuse_preset(section: Mapping[str, Any]) -> None:
    """Say what is wrong with a preset that :func:`with_preset` has left, if there is one."""
    if "preset" not in section:
        return
    from twinflow.objectives.presets import PRESETS

    name = section["name"]
    if name not in PRESETS:
        raise ValueError(
            disallowed(
                "objective.preset", section["preset"], f"only {', '.join(PRESETS)} has presets, not {name}"
            )
        )
    where = "objective.preset"
    raise ValueError(unknown_key(str(section["preset"]), PRESETS[name], where=where, noun="preset"))


def build_objective(section: Mapping[str, Any]) -> Any:
    """The objective that ``section`` describes."""
    name = section.get("name")
    if name is None:
        raise ValueError(f"objective.name is missing: use one of {', '.join(OBJECTIVES)}")
    if name not in OBJECTIVES:
        raise ValueError(unknown_key(str(name), OBJECTIVES, where="objective.name", noun="objective"))
    section = with_preset(section)
    _refuse_preset(section)
    module, _, kind_name = OBJECTIVES[name].partition(":")
    kind = getattr(import_module(module), kind_name)
    settings = {key: value for key, value in section.items() if key != "name"}
    settings = _checked_settings(kind, settings, key="objective")
    try:
        return kind(**settings)
    except (ValueError, TypeError) as error:
        raise ValueError(f"objective.{error}") from error


def _checked_settings(kind: type, settings: Mapping[str, Any], *, key: str) -> dict[str, Any]:
    """``settings`` if each is a field of the dataclass ``kind`` and of its type."""
    hints = get_type_hints(kind)
    allowed = [f.name for f in fields(kind) if f.init]
    for name in settings:
        if name not in allowed:
            raise ValueError(unknown_key(str(name), allowed, where=key))
    return {name: _checked(hints[name], value, key=f"{key}.{name}") for name, value in settings.items()}


def _checked(hint: Any, value: Any, *, key: str) -> Any:
    """``value`` if it is of the type ``hint``; a mapping may stand for a dataclass."""
    union = get_origin(hint) in (Union, types.UnionType)
    members = get_args(hint) if union else (hint,)
    if isinstance(value, Mapping):
        for member in members:
            if is_dataclass(member):
                return _checked_settings(member, value, key=key)  # type: ignore[arg-type]
    if isinstance(value, list) and any(get_origin(member) is tuple for member in members):
        value = tuple(value)
    # Dataclasses are left out: filling them from a mapping would add their defaults to a partial one.
    plain = [member for member in members if not is_dataclass(member)]
    adapter: TypeAdapter[Any] = TypeAdapter(Union[tuple(plain)], config=ConfigDict(strict=True))  # type: ignore[arg-type]  # noqa: UP007
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        reasons = [problem["msg"].replace("tuple", "list") for problem in error.errors()]
        raise ValueError(disallowed(key, value, " or ".join(dict.fromkeys(reasons)))) from error


def _plain(value: Any) -> Any:
    """``value`` as YAML would give it back: tuples become lists."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
