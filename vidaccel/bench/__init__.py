"""Speed: attention kernels and their peers at real shapes, real transformers with random weights, and whole pipelines.

Correctness comes first: what fails its check against fp64 gets no time. `vidaccel.bench.run` is behind
``vidaccel bench kernels``, `vidaccel.bench.pipeline` behind ``vidaccel bench model``.
"""
