"""When a run is dense."""

import pytest

from vidaccel.schedule import Schedule


@pytest.mark.parametrize("steps, dense", [(50, 12), (40, 10), (8, 2), (4, 1), (1, 0)])
def test_default_fraction_keeps_short_runs_sparse(steps, dense):
    plan = Schedule().resolve(steps, layers=40)
    assert [plan.is_sparse(step, 1) for step in range(steps)] == [step >= dense for step in range(steps)]


def test_counts_fractions_and_layers():
    plan = Schedule(dense_first_steps=2, dense_last_steps=0.3, dense_first_layers=0.1).resolve(10, layers=20)
    assert [step for step in range(10) if plan.is_sparse(step, 2)] == [2, 3, 4, 5, 6]
    assert [layer for layer in range(20) if plan.is_sparse(5, layer)] == list(range(2, 20))


def test_unknown_total_takes_counts_only():
    assert Schedule(dense_first_steps=1).resolve(None, 2).is_sparse(1, 1)
    for schedule in (Schedule(), Schedule(dense_first_steps=0, dense_last_steps=1)):
        with pytest.raises(ValueError, match="num_inference_steps"):
            schedule.resolve(None, 2)


@pytest.mark.parametrize("bad", [-1, 1.5, -0.1, "2", None, float("nan"), float("inf"), True])
def test_bad_values(bad):
    with pytest.raises(ValueError, match="dense_last_steps"):
        Schedule(dense_last_steps=bad)


def test_of_names_the_known_fields():
    assert Schedule.of({"dense_first_steps": 3}) == Schedule(dense_first_steps=3)
    with pytest.raises(ValueError, match="dense_first_steps, dense_last_steps"):
        Schedule.of({"warmup": 3})
