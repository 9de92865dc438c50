"""Train every family for fifty steps from nothing, and say whether the weights are those recorded.

    python miniatures/training/reproduce.py
    python miniatures/training/reproduce.py --record

The same seed, threads, torch and processor give the same weights, bit for bit; `reproduced.json` holds the digests
seen on each such machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from common import load_state
from families import FAMILIES
from vidaccel.eval.env import device

HERE = Path(__file__).resolve().parent
RECORDED = HERE / "reproduced.json"
STEPS, CLIPS, THREADS = 50, 20, 1


def run(script: str, *arguments: str) -> None:
    """One of the training's commands, in a process of its own with a fixed number of threads."""
    command = [sys.executable, str(HERE / script), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def digest(family: str, work: Path, steps: int = STEPS) -> str:
    """SHA-256 of the averaged weights after training from nothing."""
    run("train.py", "--family", family, "--work", str(work), "--steps", str(steps), "--fresh", "--pictures", "0")
    found = load_state(work / family, "dit_average")
    if found is None:
        raise RuntimeError(f"training {family} left no weights")
    content = hashlib.sha256()
    for name, tensor in sorted(found[0].items()):
        content.update(name.encode() + tensor.numpy().tobytes())
    return content.hexdigest()


def main() -> int:
    """Command line; the exit code is 1 where a recorded digest is another one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the digests down")
    parser.add_argument("--family", action="append", choices=sorted(FAMILIES), help="only this one; may be repeated")
    options = parser.parse_args()
    machine = f"{device()['name']}, {THREADS} thread, torch {torch.__version__}"
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    known, changed = recorded.setdefault(machine, {}), False
    with tempfile.TemporaryDirectory() as folder:
        for size in ("small", "large"):
            run("encode.py", "--work", folder, "--size", size, "--count", str(CLIPS), "--shard", str(CLIPS))
        for family in options.family or FAMILIES:
            seen = digest(family, Path(folder))
            verdict = {None: "not recorded on such a machine", seen: "as recorded"}.get(known.get(family), "ANOTHER")
            changed |= verdict == "ANOTHER"
            print(f"{family}: {seen} ({verdict})", flush=True)
            known[family] = seen if options.record else known.get(family)
    if options.record:
        RECORDED.write_text(json.dumps(recorded, indent=2) + "\n")
    return int(changed and not options.record)


if __name__ == "__main__":
    raise SystemExit(main())
