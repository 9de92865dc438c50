"""What a model is, by content: two models of one digest give the same clips, whatever their names and times."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vidaccel.miniature import INDEX, model_index

CHUNK = 1 << 22


def digest(model: str) -> str:
    """The digest of a model that `from_pretrained` takes: a folder by its bytes, a repository by its commit.

    Of a folder, the index and every file of the parts that it lists count, weights included: reading them costs no
    more than loading them does. A repository's commit is itself a hash of its content.

    Raises:
        ValueError: a repository whose commit cannot be told.
    """
    folder = Path(model)
    if folder.is_dir():
        return "sha256:" + _folder(folder)
    return f"{model}@{_commit(model)}"


def digest_pipeline(pipe: Any) -> str:
    """The digest of a pipeline in memory: its parts' classes, configurations, vocabularies and weights."""
    hashed = hashlib.sha256(type(pipe).__name__.encode())
    _update(hashed, _plain(getattr(pipe, "config", {})))
    for name, part in sorted(pipe.components.items()):
        _update(hashed, [name, type(part).__name__])
        if isinstance(part, nn.Module):
            _weights(hashed, part)
        elif hasattr(part, "backend_tokenizer"):
            _update(hashed, _vocabulary(part))
        if hasattr(part, "config"):
            _update(hashed, _plain(part.config))
    return "sha256:" + hashed.hexdigest()


def key_of(config: dict[str, Any]) -> str:
    """SHA-256 of JSON-ready values, in hexadecimal."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, allow_nan=False).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            hashed.update(chunk)
    return hashed.hexdigest()


def _folder(folder: Path) -> str:
    index = model_index(str(folder))
    parts = [folder / name for name in index if not name.startswith("_") and (folder / name).is_dir()]
    files = [folder / INDEX, *(file for part in parts for file in part.rglob("*") if file.is_file())]
    return key_of({file.relative_to(folder).as_posix(): file_digest(file) for file in sorted(files)})


def _commit(repository: str) -> str:
    """The commit whose index is in the cache, which is where weights are loaded from, too."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repository, INDEX)
    if not isinstance(cached, str):
        raise ValueError(f"model {repository!r} has no {INDEX} in the cache, so that its commit is unknown")
    return Path(cached).parent.name


def _weights(hashed: Any, module: nn.Module) -> None:
    for name, tensor in sorted(module.state_dict().items()):
        if tensor.is_meta:
            raise ValueError(f"{type(module).__name__} is offloaded: {name!r} cannot be read to tell the model apart")
        _update(hashed, [name, str(tensor.dtype), list(tensor.shape)])
        hashed.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def _vocabulary(tokenizer: Any) -> dict[str, Any]:
    """A tokenizer without what each call of it sets."""
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    return {name: item for name, item in values.items() if name not in ("padding", "truncation")}


def _update(hashed: Any, values: Any) -> None:
    hashed.update(json.dumps(values, sort_keys=True, default=str).encode())


def _plain(config: Any) -> dict[str, Any]:
    """A configuration without private keys, which tell where it came from."""
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {name: item for name, item in values.items() if not name.startswith("_")}
