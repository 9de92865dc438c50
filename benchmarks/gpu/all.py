"""Everything that is measured on a GPU, in one call: ``python benchmarks/gpu/all.py --out kernels.jsonl``.

The same as ``vidaccel bench kernels``, for machines that have the source and not the installed package. Exit code 1:
a result failed its check; 2: there is no GPU, or an option is wrong.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vidaccel.cli.bench import bench

if __name__ == "__main__":
    bench(["kernels", *sys.argv[1:]])
