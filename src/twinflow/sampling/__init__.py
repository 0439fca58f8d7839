"""Sampling: from noise to data along a field, in one to hundreds of network evaluations."""

from twinflow.sampling.guidance import Field
from twinflow.sampling.noise import RowGenerators, row_generators, seeded_noise
from twinflow.sampling.sampler import SamplingStep, Trajectory, sample, sample_trajectory, sampling_steps
from twinflow.sampling.schedule import Schedule, few_step_times, make_schedule, time_grid
from twinflow.sampling.settings import (
    SamplerSettings,
    SettingOverrides,
    Style,
    preset,
    published_preset,
    resolve_settings,
)

__all__ = [
    "Field",
    "RowGenerators",
    "SamplerSettings",
    "SamplingStep",
    "Schedule",
    "SettingOverrides",
    "Style",
    "Trajectory",
    "few_step_times",
    "make_schedule",
    "preset",
    "published_preset",
    "resolve_settings",
    "row_generators",
    "sample",
    "sample_trajectory",
    "sampling_steps",
    "seeded_noise",
    "time_grid",
]
