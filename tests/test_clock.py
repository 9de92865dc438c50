"""Steps, guidance passes and runs, told from the timesteps alone."""

import torch

from vidaccel.clock import Clock


def ticks(clock, calls, timesteps):
    return [(clock.tick(value, timesteps), clock.step, clock.calls) for value in calls]


def test_steps_and_passes():
    clock, timesteps = Clock(), torch.tensor([900.0, 500.0, 100.0])
    assert ticks(clock, [900, 900, 500, 500, 100], timesteps) == [
        (True, 0, 0),
        (False, 0, 1),
        (False, 1, 0),
        (False, 1, 1),
        (False, 2, 0),
    ]
    assert clock.steps == 3


def test_new_timesteps_object_is_a_new_run_even_at_the_same_timestep():
    clock = Clock()
    ticks(clock, [900, 900], torch.tensor([900.0]))
    assert ticks(clock, [900], torch.tensor([900.0])) == [(True, 0, 0)]


def test_aborted_run_is_forgotten():
    clock = Clock()
    ticks(clock, [900, 900, 500], torch.tensor([900.0, 500.0, 100.0]))
    assert ticks(clock, [500, 100], torch.tensor([500.0, 100.0])) == [(True, 0, 0), (False, 1, 0)]


def test_rising_timestep_is_a_new_run_of_a_bare_transformer():
    clock = Clock(steps=7)
    assert [new for new, _, _ in ticks(clock, [900, 500, 900], None)] == [True, False, True]
    assert clock.steps == 7


def test_late_start_and_doubled_timesteps_count_the_steps_left():
    clock = Clock()
    clock.tick(500.0, torch.tensor([900.0, 500.0, 500.0, 100.0, 100.0]))
    assert clock.steps == 2
