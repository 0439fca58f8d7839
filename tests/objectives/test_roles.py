"""Roles: exact shares for every batch size and number of processes, whatever the position of a row."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twinflow.objectives import RCGM, ROLE_NAMES, Roles, TwinFlow
from twinflow.objectives.roles import RoleRotation

from .toys import ToyField, batch, seeded

MIXES = [
    {"one_step": 1, "tangent": 1, "any_step": 1, "fake": 1},
    {"one_step": 1, "tangent": 1, "any_step": 1},
    {"one_step": 2, "tangent": 2, "any_step": 2, "fake": 1},
    {"one_step": 0.25, "tangent": 0.125, "consistency": 0.625},
    {"any_step": 0.3, "fake": 0.7},
    {"any_step": 1 / 3, "fake": 2 / 3},
]


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6, 7, 10])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_long_run_shares_are_exact(mix: dict[str, float], rows: int, world_size: int) -> None:
    roles = Roles.of(mix)
    period = len(roles.cycle())
    processes = [RoleRotation(roles) for _ in range(world_size)]
    for rank, process in enumerate(processes):
        process.rank, process.world_size = rank, world_size
    counts = torch.zeros(len(ROLE_NAMES))
    for _ in range(period):  # world_size * rows * period rows: whole cycles
        for process in processes:
            counts += torch.bincount(process.deal(rows), minlength=len(ROLE_NAMES))
    expected = torch.tensor([roles.share(name) for name in ROLE_NAMES]) * world_size * rows * period
    torch.testing.assert_close(counts, expected)


@settings(max_examples=100)
@given(
    weights=st.lists(st.integers(0, 5), min_size=5, max_size=5).filter(any),
    batches=st.lists(st.integers(1, 9), min_size=1, max_size=60),
)
def test_shares_never_stray_and_a_zero_weight_never_gets_a_row(
    weights: list[int], batches: list[int]
) -> None:
    roles = Roles(**dict(zip(ROLE_NAMES, weights, strict=True)))
    rotation = RoleRotation(roles)
    counts = torch.zeros(len(ROLE_NAMES))
    for rows in batches:
        counts += torch.bincount(rotation.deal(rows), minlength=len(ROLE_NAMES))
        expected = torch.tensor([roles.share(name) for name in ROLE_NAMES]) * counts.sum()
        # Within a cycle a role's count can only be off by what one cycle holds of it.
        per_cycle = torch.tensor([roles.share(name) for name in ROLE_NAMES]) * len(roles.cycle())
        assert ((counts - expected).abs() <= per_cycle).all()
    assert all(counts[i] == 0 for i, weight in enumerate(weights) if weight == 0)


def test_processes_take_disjoint_slices_of_one_rotation() -> None:
    alone = RoleRotation(Roles())
    whole = alone.deal(3 * 2 * 5)
    parts = []
    shards = [RoleRotation(Roles()) for _ in range(3)]
    for rank, shard in enumerate(shards):
        shard.rank, shard.world_size = rank, 3
    for _ in range(5):
        parts += [shard.deal(2) for shard in shards]
    assert torch.equal(torch.cat(parts), whole)
    assert all(shard.rows == alone.rows for shard in shards)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8, 12, 16])
def test_one_row_a_process_still_meets_every_role(world_size: int) -> None:
    """With as many processes as roles, a plain rotation would give each process the same role for ever."""
    for rank in range(world_size):
        rotation = RoleRotation(Roles())
        rotation.rank, rotation.world_size = rank, world_size
        counts = Counter(int(rotation.deal(1)) for _ in range(400))
        assert all(abs(counts[role] - 100) <= 8 for role in range(4))


@pytest.mark.parametrize("rows", [6, 7, 10])
def test_batches_that_are_no_multiple_of_four_get_every_role(rows: int) -> None:
    """Regression: rounding gave 6 rows as 2:2:2:0 and 10 rows as 2:2:2:4."""
    counts = torch.bincount(RoleRotation(Roles()).deal(rows), minlength=4)
    assert counts.max() - counts.min() <= 1 + (rows > 8)
    assert counts.min() >= rows // 4 - 1
    assert counts.min() > 0


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 16])
def test_rcgm_needs_no_edit_and_never_has_a_fake_row(rows: int) -> None:
    """Regression: roles 1:1:1:0 gave the last role the remainder, and RCGM needed lines commented out."""
    x, cond, uncond = batch(rows)
    objective = RCGM(roles={"one_step": 1, "tangent": 1, "any_step": 1}, teacher="self")
    seen = set()
    for seed in range(12):
        step = objective.step(ToyField(), x, cond, uncond=uncond, generator=seeded(seed))
        seen |= set(step.rows.roles)
        assert "rectify" not in step.losses
    assert seen == {"one_step", "tangent", "any_step"}


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_small_batches_work_and_go_through_all_roles(rows: int) -> None:
    """Regression: at least four rows were asserted, even for recipes of a single role."""
    x, cond, uncond = batch(rows)
    objective, counts = TwinFlow(teacher="self"), Counter()
    for seed in range(8):
        step = objective.step(ToyField(), x, cond, uncond=uncond, generator=seeded(seed))
        counts.update(step.rows.roles)
        assert torch.isfinite(step.loss)
    assert counts == {name: 2 * rows for name in ("one_step", "tangent", "any_step", "fake")}


def test_a_row_of_the_batch_gets_every_role_by_chance() -> None:
    """Regression: contiguous blocks tied the role to the position in the loader's batch."""
    x, cond, uncond = batch(4)
    objective, generator = TwinFlow(teacher="self"), seeded()
    counts = [Counter() for _ in range(4)]
    for _ in range(200):
        step = objective.step(ToyField(), x, cond, uncond=uncond, generator=generator)
        for row, role in enumerate(step.rows.roles):
            counts[row][role] += 1
    for counter in counts:  # binomial(200, 1/4): mean 50, standard deviation 6.1
        assert all(abs(counter[name] - 50) < 5 * 6.1 for name in ("one_step", "tangent", "any_step", "fake"))


def test_the_generator_deals_the_roles_within_a_batch() -> None:
    x, cond, uncond = batch(4)
    objective, dealt = TwinFlow(teacher="self"), set()
    for seed in range(200):
        objective.load_state_dict({"rows": 0})  # always the same four roles
        step = objective.step(ToyField(), x, cond, uncond=uncond, generator=seeded(seed))
        assert sorted(step.rows.roles) == ["any_step", "fake", "one_step", "tangent"]
        dealt.add(tuple(step.rows.roles))
    assert len(dealt) == 24  # every permutation; one is missing with probability 24 (23/24)^200 = 0.5 %


def test_a_mapping_names_the_roles_that_have_a_weight() -> None:
    assert Roles.of({"any_step": 3}) == Roles(one_step=0, tangent=0, any_step=3, fake=0, consistency=0)
    assert Roles.of(Roles()) == Roles()


@pytest.mark.parametrize(
    ("mix", "words"),
    [
        ({"any_step": -1}, ["roles.any_step", "-1"]),
        ({"any_step": float("nan")}, ["roles.any_step", "nan"]),
        ({"any_step": 0}, ["every weight is 0"]),
        ({"anystep": 1}, ["anystep", "any_step"]),
        ({"any_step": 1, "fake": 1e-9}, ["too fine", "2:2:2:1"]),
        ({"any_step": 1, "fake": 1 / 997, "tangent": 1 / 991, "one_step": 1 / 983}, ["too fine"]),
    ],
)
def test_bad_roles_are_named(mix: dict[str, float], words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        Roles.of(mix)
    assert all(word in str(error.value) for word in words)


def test_only_the_ratios_of_the_weights_matter() -> None:
    plain = Roles(one_step=2, any_step=1, tangent=0, fake=0).cycle()
    assert sorted(plain) == [0, 0, 2]
    for scale in (1e-3, 1 / 3, 1e4):
        assert Roles(one_step=2 * scale, any_step=scale, tangent=0, fake=0).cycle() == plain


@pytest.mark.parametrize("mix", [*MIXES, {"any_step": 20, "fake": 2, "one_step": 1}])
def test_every_stretch_of_the_cycle_holds_its_share_of_each_role(mix: dict[str, float]) -> None:
    """Entries lie at (j + 1/2) / n of the cycle. Up to a place p a role has n p of them, to half an entry, and all R
    roles together P p, to R / 2: that bounds how far a role's count is ahead of its share, or behind."""
    cycle = torch.tensor(Roles.of(mix).cycle())
    number = torch.arange(1, len(cycle) + 1)
    for role in cycle.unique():
        is_role = cycle == role
        share = is_role.double().mean().item()
        off = (is_role.cumsum(0) - share * number).abs().max().item()
        assert off <= 0.5 + share * len(cycle.unique()) / 2 + 1e-9


def test_the_longest_cycle_has_ten_thousand_rows() -> None:
    mix = {"one_step": 3553, "tangent": 3179, "any_step": 3268}
    assert torch.bincount(torch.tensor(Roles.of(mix).cycle())).tolist() == list(mix.values())
    with pytest.raises(ValueError, match="too fine"):
        Roles.of({"one_step": 5010, "tangent": 4175, "any_step": 816})  # one more
