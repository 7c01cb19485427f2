"""Who shares what among the processes of a run."""

import pytest

from wan_core.errors import ConfigError
from wan_core.runtime.mesh import ParallelPlan, plan_parallel


@pytest.mark.parametrize(
    ("world", "num_heads", "sequence", "guidance", "plan"),
    [
        (8, 40, 8, 1, ParallelPlan(ulysses=8)),
        (8, 12, 8, 1, ParallelPlan(ring=2, ulysses=4)),
        (5, 12, 5, 1, ParallelPlan(ring=5)),
        (6, 40, 6, 1, ParallelPlan(ring=3, ulysses=2)),
        (8, 40, 4, 2, ParallelPlan(guidance=2, ulysses=4)),
        (8, 24, 2, 1, ParallelPlan(data=4, ulysses=2)),
        (12, 12, 3, 2, ParallelPlan(data=2, guidance=2, ulysses=3)),
        (1, 7, 1, 1, ParallelPlan()),
    ],
)
def test_heads_are_divided_as_far_as_they_go_and_a_ring_has_the_rest(
    world: int, num_heads: int, sequence: int, guidance: int, plan: ParallelPlan
) -> None:
    assert plan_parallel(world, num_heads=num_heads, sequence=sequence, guidance=guidance) == plan
    assert (plan.world, plan.sequence) == (world, sequence)
    assert num_heads % plan.ulysses == 0


@pytest.mark.parametrize(
    ("world", "sequence", "guidance", "said"),
    [
        (8, 3, 1, "8 processes are no whole number of groups of 3; take a multiple of 3"),
        (2, 2, 2, "2 processes are no whole number of groups of 2 branches of guidance x 2; take a multiple of 4"),
        (4, 0, 1, "must be at least 1, got 0"),
        (4, 2, 3, "two branches, which 1 or 2 processes run, got 3"),
        (0, 1, 1, "0 processes"),
    ],
)
def test_groups_that_do_not_come_out_are_refused(world: int, sequence: int, guidance: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan_parallel(world, num_heads=12, sequence=sequence, guidance=guidance)
