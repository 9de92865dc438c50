"""The training: the same seed gives the same weights, and a run that is stopped goes on as if it had not been."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

TRAINING = Path(__file__).resolve().parents[2] / "miniatures" / "training"
FAMILIES = ("wan", "hunyuanvideo", "cogvideox")


@pytest.fixture(scope="module", autouse=True)
def training_on_the_path() -> Iterator[None]:
    # The scripts import each other by their plain names, as scripts do.
    sys.path.insert(0, str(TRAINING))
    yield
    sys.path.remove(str(TRAINING))


@pytest.fixture
def common() -> ModuleType:
    import common

    return common


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few encoded clips: noise will do, and takes no autoencoder."""
    from common import save_state

    folder = tmp_path_factory.mktemp("work")
    torch.manual_seed(0)
    for size, sides in (("small", (4, 6)), ("large", (6, 8))):
        latents = torch.randn(4, 8, 7, *sides).half()
        texts = ["a red circle moves left", "a blue square moves up", "a white triangle rotates", "a green circle"]
        save_state(folder / "latents", f"{size}_0000", {"latents": latents}, {"texts": texts})
    return folder


def trained(work: Path, family: str, steps: int, **settings: Any) -> Any:
    """A run of `steps` steps from nothing."""
    from train import Run, train

    options = {"family": family, "work": work, "minutes": 1.0, "steps": steps, "seed": 5, "fresh": True,
               "pictures": 0, "compile": False, **settings}  # fmt: skip
    run = Run(argparse.Namespace(**options), 1)
    train(run, 0)
    return run


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_gives_the_same_weights(family: str, work: Path, tmp_path: Path) -> None:
    runs = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "latents").symlink_to(work / "latents")
        runs.append(trained(tmp_path / name, family, 3, seed=seed).average)
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])
    assert not all(torch.equal(runs[0][key], runs[2][key]) for key in runs[0])


def test_a_family_learns(work: Path, tmp_path: Path) -> None:
    (tmp_path / "latents").symlink_to(work / "latents")
    run = trained(tmp_path, "wan", 25)
    assert run.step == 25 and run.progress == 1.0
    assert min(run.losses.values()) < 1.9  # a model that says nothing has 2.0 on unit latents


def test_guidance_moves_the_target_of_a_distilled_family(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import guidance
    from families import FAMILIES as families

    family = families["hunyuanvideo"]
    torch.manual_seed(1)
    model = family.build_transformer()
    torch.nn.init.normal_(model.proj_out.weight, std=0.1)
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    text, nothing = family.embed(["a red circle moves left", "a blue square moves up"]), family.embed([""])
    latents = torch.randn(2, 8, 3, 4, 6)
    monkeypatch.setattr(guidance, "GUIDED", 1.0)
    monkeypatch.setattr(guidance, "DROP", 0.0)
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(guidance.F, "mse_loss", lambda prediction, target: seen.append(target) or prediction.sum())
    guidance.loss_of(family, model, average, latents, text, nothing, torch.Generator().manual_seed(2), 1.0)

    # The same draws, and two plain passes.
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(latents.shape, generator=generator)
    noisy, timestep, target = family.noised(latents, noise, generator)
    torch.rand(2, generator=generator)
    scale = torch.empty(2).uniform_(*guidance.SCALES, generator=generator)
    none = {key: value.expand(2, *value.shape[1:]) for key, value in nothing.items()}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with_text, without = (family.predict(model, noisy, timestep, t, torch.ones(2)).float() for t in (text, none))
    expected = target + (scale - 1).view(-1, 1, 1, 1, 1) * (with_text - without)
    assert (expected - target).abs().max() > 0.1
    torch.testing.assert_close(seen[0], expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_objective_is_the_schedulers(family: str) -> None:
    """From the noisy latents and the right answer, the scheduler's last step gives the clean latents back."""
    from families import FAMILIES as families

    side = families[family]
    torch.manual_seed(3)
    latents, noise = torch.randn(1, 8, 3, 4, 4), torch.randn(1, 8, 3, 4, 4)
    scheduler = side.pipeline(side.build_vae(), side.build_transformer()).scheduler
    scheduler.set_timesteps(20)
    noisy, timestep, target = side.noised(latents, noise, torch.Generator().manual_seed(0))
    if family == "cogvideox":
        clean = scheduler.step(target, int(timestep[0]), noisy).pred_original_sample
    else:
        clean = noisy - (timestep / 1000) * target
    torch.testing.assert_close(clean, latents, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_embedded_as_the_pipeline_does(family: str) -> None:
    from families import FAMILIES as families

    side = families[family]
    pipe = side.pipeline(side.build_vae(), side.build_transformer())
    prompt = "a red circle moves left over soft clouds"
    kept = {key: value for key, value in side.defaults.items() if key in ("max_sequence_length", "prompt_template")}
    guided = {} if family == "hunyuanvideo" else {"do_classifier_free_guidance": False}
    made = pipe.encode_prompt(prompt, **kept, **guided)
    mine = side.embed([prompt])
    torch.testing.assert_close(made[0], mine["states"])
    if family == "hunyuanvideo":
        torch.testing.assert_close(made[1], mine["pooled"])
        torch.testing.assert_close(made[2].float(), mine["mask"])
        assert int(mine["mask"].sum()) == len(prompt.split()) + 1, "a word was cropped away"


def build() -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 4)
    return layer, torch.optim.AdamW(layer.parameters(), lr=0.1)


def step(layer: torch.nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    layer(torch.arange(4.0)).square().sum().backward()
    optimizer.step()


def test_resumed_optimizer_takes_the_same_step(common: ModuleType, tmp_path: Path) -> None:
    layer, optimizer = build()
    step(layer, optimizer)
    common.save_state(tmp_path, "run", layer.state_dict() | common.optimizer_tensors(optimizer, "opt"), {"n": 1})
    tensors, facts = common.load_state(tmp_path, "run")
    resumed, its_optimizer = build()
    resumed.load_state_dict({key: tensors[key] for key in resumed.state_dict()})
    common.restore_optimizer(its_optimizer, "opt", tensors)
    step(layer, optimizer)
    step(resumed, its_optimizer)
    assert facts == {"n": 1} and torch.equal(layer.weight, resumed.weight)
    assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]


def test_convolutions_are_trained_as_matrices(common: ModuleType) -> None:
    from match_vae import Optimizer

    torch.manual_seed(0)
    vae = torch.nn.Sequential(torch.nn.Conv3d(3, 16, 3), torch.nn.Conv3d(16, 3, 3))
    before = [p.detach().clone() for p in vae.parameters()]
    optimizer = Optimizer(vae)
    assert len(optimizer.convolutions) == 1 and optimizer.convolutions[0] is vae[0].weight
    vae(torch.randn(1, 3, 7, 7, 7)).square().mean().backward()
    optimizer.step(1.0)
    assert all(not torch.equal(p, old) for p, old in zip(vae.parameters(), before, strict=True))
    # Muon's step is orthogonal: every direction of the matrix moves by the same length.
    moved = (vae[0].weight.detach() - before[0]).flatten(1)
    lengths = torch.linalg.svdvals(moved)
    assert lengths.max() / lengths.min() < 2.5


def test_nothing_saved_is_none(common: ModuleType, tmp_path: Path) -> None:
    assert common.load_state(tmp_path, "run") is None


def test_learning_rate_rises_holds_and_ends_at_zero(common: ModuleType) -> None:
    assert common.annealed(0.0) == 0.0 and common.annealed(1.0) == 0.0
    assert common.annealed(0.02) == common.annealed(0.4) == 1.0
    assert common.annealed(0.7) == pytest.approx(0.5)


def test_clock_carries_over_earlier_seconds(common: ModuleType) -> None:
    assert common.Clock(1.0, spent=30.0).progress == pytest.approx(0.5, abs=0.05)
    assert common.Clock(1.0, spent=90.0).progress == 1.0
    steps = common.Steps(4, done=1)
    steps.tick()
    assert steps.progress == 0.5


@pytest.mark.parametrize("family", ["wan", "cogvideox"])
def test_an_autoencoders_training_goes_on_where_it_was(family: str, tmp_path: Path) -> None:
    import match_vae
    import train_vae

    def start() -> Any:
        if family == "wan":
            return train_vae.Run(tmp_path, 1.0, 1, 0)
        return match_vae.Run(family, tmp_path, 1.0, 1, 0)

    run = start()
    with torch.no_grad():
        next(run.vae.parameters()).fill_(0.5)
    run.step = 7
    run.save()
    again = start()
    assert again.step == 7 and bool((next(again.vae.parameters()) == 0.5).all())
    assert (tmp_path / family / "vae_checkpoint.safetensors").exists()
