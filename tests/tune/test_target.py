from __future__ import annotations

import pytest

from vidaccel.target import Target


@pytest.mark.parametrize(
    "text, shown, metrics",
    [
        ("psnr>=30", "psnr>=30", ("psnr",)),
        (" psnr >= 30.5 and speedup>=2 ", "psnr>=30.5 and speedup>=2", ("psnr",)),
        ("st_lpips<=1e-2,ssim>=.9", "st_lpips<=0.01 and ssim>=0.9", ("st_lpips", "ssim")),
        ("speedup>=2", "speedup>=2", ()),
    ],
)
def test_what_a_target_says(text, shown, metrics):
    made = Target.of(text)
    assert str(made) == shown and made.metrics == metrics
    assert Target.of(made) is made and Target.of(shown) == made


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("", "is not METRIC>=NUMBER"),
        ("psnr", "is not METRIC>=NUMBER"),
        ("psnr=30", "is not METRIC>=NUMBER"),
        ("psnr>30", "is not METRIC>=NUMBER"),
        ("psnr>=30 and", "is not METRIC>=NUMBER"),
        ("vmaf>=90", "names 'vmaf'; choose speedup, psnr, ssim"),
        ("psnr<=30", "of psnr, more is better: write psnr>=30"),
        ("lpips>=0.1", "of lpips, less is better: write lpips<=0.1"),
        ("psnr>=many", "'many' is not a finite number"),
        ("psnr>=inf", "'inf' is not a finite number"),
        ("speedup>=0", "'0' is not a finite number above 0"),
        ("psnr>=30 and psnr>=31", "limits psnr twice"),
        (30, "target 30 is not a text"),
    ],
)
def test_what_is_no_target(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        Target.of(text)


def test_when_it_is_met():
    wanted = Target.of("psnr>=30 and st_lpips<=0.01")
    assert wanted.met({"psnr": 30.0, "st_lpips": 0.01}.get)
    assert not wanted.met({"psnr": 29.9, "st_lpips": 0.01}.get)
    assert not wanted.met({"psnr": 30.0, "st_lpips": 0.011}.get)
    assert not wanted.met({"psnr": 30.0}.get), "what was not measured is not met"
