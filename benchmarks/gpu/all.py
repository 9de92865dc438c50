"""Everything that is measured on a GPU, in one call: ``python benchmarks/gpu/all.py --out kernels.jsonl``.

First kernels, planning and passes of transformers: the same as ``vidaccel bench kernels``, with its options, for
machines that have the source and not the installed package. Then whole runs with step caches, into caching.jsonl in the
folder of `--out`: see caching.py. Both share `--minutes`; called again with the same files, it goes on with the caches
where the time was up, and leaves the kernels alone. `--part` takes the parts of ``bench kernels``, and "caching":
only what is named runs then.

Exit code 1: a result failed its check; 2: there is no GPU, or an option is wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import caching

from vidaccel.cli.bench import bench

CACHING = "caching"


def main(arguments: list[str]) -> int:
    """The exit code of what is asked for."""
    begun = time.monotonic()
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--part", action="append", default=[])
    options.add_argument("--out", type=Path, default=Path("bench-kernels.jsonl"))
    options.add_argument("--minutes", type=float, default=8.0)
    options.add_argument("--git", help="revision for caching.py, where the source has come without its .git")
    options.add_argument("--smoke", action="store_true")
    given, rest = options.parse_known_args(arguments)
    code, parts = 0, [part for part in given.part if part != CACHING]
    if "--help" in rest or parts or not (given.part or given.out.exists()):
        named = [word for part in parts for word in ("--part", part)]
        smoke = ["--smoke"] if given.smoke else []
        code = kernels([*named, *smoke, "--out", str(given.out), "--minutes", str(given.minutes), *rest])
    if code > 1 or "--help" in rest or (given.part and CACHING not in given.part):
        return code
    left = given.minutes - (time.monotonic() - begun) / 60
    more = (["--git", given.git] if given.git else []) + (["--tiny"] if given.smoke else [])
    out = given.out.with_name("caching.jsonl")
    return max(code, caching.main(["--out", str(out), "--minutes", str(left), *more]))


def kernels(arguments: list[str]) -> int:
    """The exit code of ``vidaccel bench kernels``."""
    try:
        bench(["kernels", *arguments])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1 if end.code else 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
