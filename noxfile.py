"""`nox -s versions`: the key tests on every diffusers line that vidaccel supports, each in its own environment.

What differs between them for the Wan family, as run and read with torch 2.13.0 on a CPU:

- 0.35.2: `dispatch_attention_fn` takes no `parallel_config` and `WanAttnProcessor` has no `_parallel_config`; there is
  no HunyuanVideo 1.5 and no Wan Animate. Runs with transformers 4.57 and huggingface-hub 0.36.
  SkyReels-V2 has another attention processor, and is refused.
- 0.38.0: both are there. Needs huggingface-hub below 2.0. Cosmos takes no adapters. Up to here groups are offloaded
  where there is an accelerator alone.
- 0.42.1: `cache_context(name, **fields)`, before it `cache_context(name)`. Needs Python 3.11; for 3.10 there is 0.41.0.
- The same in all three: `AttentionMixin`, `attn_processors`, `fuse_qkv_projections`, `WanAttention` and the parameters
  of `WanAttnProcessor.__call__`.
"""

from __future__ import annotations

import nox

nox.options.sessions = ["versions"]
nox.options.default_venv_backend = "venv"

TORCH = "torch==2.13.0"
TRITON = "triton==3.7.1; platform_system == 'Linux'"
HOSTS = {
    "0.35.2": "transformers==4.57.6",
    "0.38.0": "transformers==5.23.0",
    "0.42.1": "transformers==5.23.0",
}
TESTS = ["tests/test_bit_identical.py", "tests/pipelines/test_conformance.py", "tests/pipelines/test_hunyuanvideo.py",
         "tests/pipelines/test_cogvideox.py"]  # fmt: skip
"""Classes that a version does not have yet are left out."""


@nox.session
@nox.parametrize("diffusers", list(HOSTS))
def versions(session: nox.Session, diffusers: str) -> None:
    """Dense steps bit-identical, full masks equal and exact undo, on one version of diffusers."""
    session.env.update(PIP_DISABLE_PIP_VERSION_CHECK="1", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    # Alone and first: a later requirement on "torch" is then met, and no newer, larger build comes in.
    session.install(TORCH)
    host = [f"diffusers=={diffusers}", HOSTS[diffusers], "accelerate==1.15.0", "peft==0.21.2"]
    session.install(TORCH, TRITON, *host, "pytest", "pytest-timeout", "hypothesis", "-e", "./miniatures", "-e", ".")
    session.run("python", "-c", "import diffusers; print('diffusers', diffusers.__version__)")
    session.run("python", "-m", "pytest", "-q", "--all-variants", *(session.posargs or TESTS))
