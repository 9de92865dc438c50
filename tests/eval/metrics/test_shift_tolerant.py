"""ST-LPIPS: its trunk against torch's modules, its weights found without an import, its published behaviour."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data, filters, transform
from torch import Tensor, nn

from vidaccel.eval.metrics import compare_videos, shift_tolerant
from vidaccel.eval.metrics.perceptual import distance
from vidaccel.eval.metrics.shift_tolerant import LEAST, WEIGHTS, StLpips, st_lpips

CHANNELS = (3, 64, 192, 384, 256, 256)
KERNELS = (11, 5, 3, 3, 3)
LAYERS = ("net.slice1.0", "net.slice2.5", "net.slice3.9", "net.slice4.11", "net.slice5.13")


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Random weights with the names and shapes of the published ones."""
    draw = torch.Generator().manual_seed(0)
    found = {"scaling_layer.shift": torch.tensor([-0.03, -0.088, -0.188]).view(1, 3, 1, 1),
             "scaling_layer.scale": torch.tensor([0.458, 0.448, 0.45]).view(1, 3, 1, 1)}  # fmt: skip
    for layer, (name, kernel) in enumerate(zip(LAYERS, KERNELS, strict=True)):
        inputs, outputs = CHANNELS[layer : layer + 2]
        fan = inputs * kernel**2
        found[f"{name}.weight"] = torch.randn(outputs, inputs, kernel, kernel, generator=draw) * (2 / fan) ** 0.5
        found[f"{name}.bias"] = torch.randn(outputs, generator=draw) * 0.1
        found[f"lin{layer}.model.1.weight"] = torch.rand(1, outputs, 1, 1, generator=draw)
    triangle = torch.tensor([1.0, 2.0, 1.0])
    for name, channels in (("slice1.1", 64), ("slice2.4", 64), ("slice3.8", 192)):
        found[f"net.{name}.filt"] = (torch.outer(triangle, triangle) / 16).repeat(channels, 1, 1, 1)
    return found


class Blur(nn.Module):
    """Binomial blur in each direction, then every second pixel."""

    def forward(self, x: Tensor) -> Tensor:
        x = nn.ReflectionPad2d(2)(x)
        x = (x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]) / 4
        x = (x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]) / 4
        return x[:, :, ::2, ::2]


def slow_features(weights: dict[str, Tensor], images: Tensor) -> list[Tensor]:
    """The trunk as one chain of torch's modules, in the order of the weights' numbers."""
    convolutions = []
    for layer, (name, kernel, padding) in enumerate(zip(LAYERS, KERNELS, (2, 2, 1, 1, 1), strict=True)):
        convolutions.append(nn.Conv2d(*CHANNELS[layer : layer + 2], kernel, padding=padding))
        convolutions[-1].load_state_dict({part: weights[f"{name}.{part}"] for part in ("weight", "bias")})
    first, second, third, fourth, fifth = convolutions
    chain = [first, Blur(), nn.ReLU(), nn.MaxPool2d(3, 1), Blur(), second, nn.ReLU(), nn.MaxPool2d(3, 1), Blur(),
             third, nn.ReLU(), fourth, nn.ReLU(), fifth, nn.ReLU()]  # fmt: skip
    x = (images - weights["scaling_layer.shift"]) / weights["scaling_layer.scale"]
    found = []
    for part in chain:
        x = part(x)
        if isinstance(part, nn.ReLU):
            found.append(x)
    return found


@pytest.mark.parametrize("height, width", [(LEAST, LEAST), (40, 67)])
def test_features_are_those_of_the_chain(weights: dict[str, Tensor], height: int, width: int) -> None:
    a, b = (torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in range(2))
    model = StLpips(weights)
    with torch.no_grad():
        found, expected = model.features(a), slow_features(weights, a)
        assert [each.shape for each in found] == [each.shape for each in expected]
        assert all(torch.allclose(x, y, rtol=1e-4, atol=1e-5) for x, y in zip(found, expected, strict=True))
        linear = [weights[f"lin{layer}.model.1.weight"].flatten() for layer in range(5)]
        expected_distance = distance(expected, slow_features(weights, b), linear)
        assert torch.allclose(model(a, b), expected_distance, rtol=1e-4, atol=0)
        assert model(a, a).tolist() == [0, 0]


def test_smallest_frame(weights: dict[str, Tensor]) -> None:
    with pytest.raises(RuntimeError):
        StLpips(weights).features(torch.zeros(1, 3, LEAST - 1, 64))


def test_weights_that_lack_something_are_refused(weights: dict[str, Tensor]) -> None:
    rest = {name: each for name, each in weights.items() if name not in ("lin3.model.1.weight", "net.slice2.4.filt")}
    with pytest.raises(ValueError, match=r"lack lin3.model.1.weight, net.slice2.4.filt"):
        StLpips(rest)


@pytest.fixture
def wheel(weights: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The distribution as pip installs it, with random weights and a package that must not be imported."""
    about = tmp_path / "stlpips_pytorch-0.0.2.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text("Metadata-Version: 2.1\nName: stlpips-pytorch\nVersion: 0.0.2\n")
    path = tmp_path / WEIGHTS
    path.parent.mkdir(parents=True)
    torch.save(weights, path)
    (tmp_path / "stlpips_pytorch" / "__init__.py").write_text("raise ImportError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return path


def test_the_installed_file_is_read_and_nothing_imported(
    wheel: Path, weights: dict[str, Tensor], clip: np.ndarray, blurred: np.ndarray
) -> None:
    score = st_lpips(clip, blurred)
    images = [torch.from_numpy(frames / 255).permute(0, 3, 1, 2).float() * 2 - 1 for frames in (clip, blurred)]
    with torch.no_grad():
        expected = StLpips(weights)(*images).tolist()
    assert score.frames == pytest.approx(expected, rel=1e-4) and score.value == pytest.approx(np.mean(expected))
    assert "stlpips_pytorch" not in sys.modules
    values = compare_videos(clip, blurred, metrics=["st_lpips"], per_frame=True)
    assert values["st_lpips"] == score.value and values["per_frame"] == {"st_lpips": score.frames}


def test_no_object_of_the_file_is_built(wheel: Path, clip: np.ndarray) -> None:
    torch.save({"net": SystemExit("built")}, wheel)
    with pytest.raises(Exception, match="[Ww]eights.only"):
        st_lpips(clip, clip)


def test_missing_weights_are_a_reason(clip: np.ndarray, wheel: Path) -> None:
    wheel.unlink()
    score = st_lpips(clip, clip)
    assert score.value is None and "pip install --no-deps stlpips-pytorch" in score.reason


def test_missing_distribution_is_a_reason(clip: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shift_tolerant, "DISTRIBUTION", "no-such-distribution-at-all")
    score = st_lpips(clip, clip)
    assert score.value is None and "not installed" in score.reason


def test_frames_too_small_say_so(wheel: Path) -> None:
    small = np.zeros((1, LEAST - 1, 64, 3))
    score = st_lpips(small, small)
    assert score.value is None and "64x20" in score.reason


def test_published_weights() -> None:
    """What the original package gives for a blurred photograph, to three digits, run once beside ours."""
    if shift_tolerant.weights_file() is None:
        pytest.skip("its weights are not installed: pip install --no-deps stlpips-pytorch")
    photo = transform.resize(data.astronaut(), (256, 256), anti_aliasing=True)
    clip = np.stack([photo] * 5)
    blurred = np.stack([filters.gaussian(photo, sigma=s, channel_axis=-1) if s else photo for s in (0, 0.5, 1, 2, 4)])
    assert st_lpips(clip, blurred).frames == pytest.approx([0, 0.015707, 0.163685, 0.478932, 0.722541], abs=1e-5)
