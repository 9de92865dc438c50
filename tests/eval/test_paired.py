"""The paired bootstrap: of known cases, of records, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from vidaccel.eval.paired import compare_rows, paired_bootstrap


def test_a_shared_difficulty_does_not_hide_a_small_gain():
    rng = np.random.default_rng(0)
    hard = rng.normal(20, 5, 16)
    better = hard + 0.3 + rng.normal(0, 0.1, 16)
    found = paired_bootstrap(better, hard)
    assert found.verdict == "higher" and found.low < found.mean < found.high
    assert paired_bootstrap(hard, better).verdict == "lower"
    assert found == paired_bootstrap(better, hard)


def test_noise_alone_is_tied():
    first, second = np.random.default_rng(1).normal(20, 1, (2, 16))
    assert paired_bootstrap(first, second).verdict == "tied"


def test_interval_covers_the_truth_about_as_often_as_it_says():
    draws = np.random.default_rng(2).normal(1, 1, (200, 30))
    intervals = [paired_bootstrap(each, np.zeros(30), resamples=500, seed=at) for at, each in enumerate(draws)]
    assert 0.88 < np.mean([each.low <= 1 <= each.high for each in intervals]) < 0.99


def test_rows_are_paired_by_prompt_and_seed():
    def record(prompt, seed, psnr):
        return {"prompt": prompt, "seed": seed, "metrics": {"psnr": psnr}}

    first = [record("a", 0, 3.0), record("b", 0, 5.0), record("c", 0, None), record("d", 0, 9.0)]
    second = [record("b", 0, 4.0), record("a", 0, 2.0), record("c", 0, 1.0)]
    found = compare_rows(first, second, "psnr")
    assert (found.pairs, found.mean, found.low, found.high) == (2, 1.0, 1.0, 1.0)


@pytest.mark.parametrize(("first", "second", "options", "message"), [
    ([1.0], [1.0], {}, "two pairs or more"),
    ([1.0, 2.0], [1.0], {}, "two pairs or more"),
    ([1.0, float("nan")], [1.0, 1.0], {}, "finite"),
    ([1.0, 2.0], [1.0, 1.0], {"level": 1.0}, "outside"),
])  # fmt: skip
def test_bad_input_is_refused(first, second, options, message):
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(first, second, **options)
