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


def test_rounded_timesteps_are_told_apart_by_the_schedulers_count():
    """HunyuanVideo's pipeline gives timesteps in bfloat16, which is multiples of 4 near 1000; with two passes, too."""
    timesteps, clock = torch.tensor([1000.0, 997.1, 994.2, 991.0, 500.0]), Clock()
    found = []
    for step, value in enumerate(timesteps.bfloat16()):
        for _ in range(2):
            clock.tick(float(value), timesteps, torch.bfloat16, step or None)
            found.append((clock.step, clock.calls))
    assert timesteps.bfloat16().unique().numel() < 5
    assert found == [(step, call) for step in range(5) for call in range(2)]


def test_a_schedulers_count_alone_is_no_step():
    """Heun's methods count two for one timestep."""
    timesteps, clock = torch.tensor([900.0, 500.0, 500.0]), Clock()
    found = []
    for index, value in enumerate(timesteps.tolist()):
        clock.tick(value, timesteps, torch.float32, index or None)
        found.append((clock.step, clock.calls))
    assert found == [(0, 0), (1, 0), (1, 1)]


def test_timesteps_that_rise() -> None:
    clock, timesteps = Clock(rising=True), torch.tensor([0.0, 10.0, 400.0])
    assert [clock.tick(time, timesteps) for time in (0.0, 0.0, 10.0, 400.0)] == [True, False, False, False]
    assert (clock.step, clock.steps, clock.calls, clock.timesteps) == (2, 3, 0, (0.0, 10.0, 400.0))
    assert clock.tick(0.0, timesteps) and clock.step == 0
    assert clock.tick(10.0, timesteps.clone()) and clock.steps == 2
