from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.tiny import generate, tiny_wan
from vidaccel.eval.identity import digest, digest_pipeline, key_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "wan"
    tiny_wan().save_pretrained(path)
    return path


def test_a_folder_is_known_by_its_content(folder: Path, tmp_path: Path) -> None:
    before = digest(str(folder))
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text("not read by the pipeline")
    for file in copy.rglob("*"):
        os.utime(file, (1, 1))
    assert digest(str(copy)) == before and before.startswith("sha256:")


@pytest.mark.parametrize("name", ["transformer/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json",
                                  "tokenizer/tokenizer.json"])  # fmt: skip
def test_one_byte_makes_another_model(folder: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    data = bytearray((copy / name).read_bytes())
    data[-2] ^= 1
    (copy / name).write_bytes(data)
    assert digest(str(copy)) != digest(str(folder))


def test_a_repository_is_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = tmp_path / "snapshots" / "0123abcd" / "model_index.json"
    found: dict[str, str | None] = {"owner/name": str(index), "owner/absent": None}
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, file: found[repository])
    assert digest("owner/name") == "owner/name@0123abcd"
    with pytest.raises(ValueError, match="commit is unknown"):
        digest("owner/absent")


def test_a_pipeline_in_memory_is_known_by_its_parts() -> None:
    pipe, same, other = tiny_wan(seed=3), tiny_wan(seed=3), tiny_wan(seed=4)
    before = digest_pipeline(pipe)
    assert digest_pipeline(same) == before != digest_pipeline(other)
    generate(same, num_inference_steps=1)
    assert digest_pipeline(same) == before, "a run changes nothing"
    with torch.no_grad():
        same.vae.decoder.conv_out.bias[0] += 1
    assert digest_pipeline(same) != before
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, shift=5.0)
    assert digest_pipeline(pipe) != before


def test_keys_do_not_depend_on_order() -> None:
    assert key_of({"a": 1, "b": [1, 2]}) == key_of({"b": [1, 2], "a": 1}) != key_of({"a": 1, "b": [2, 1]})
    with pytest.raises(ValueError):
        key_of({"a": float("inf")})
