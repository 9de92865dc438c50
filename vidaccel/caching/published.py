"""Numbers that authors published for whole models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class TeaCacheNumbers:
    """What TeaCache's authors give for one model.

    Args:
        coefficients: highest power first.
        slow, fast: their thresholds of best quality and of highest speed; the same where they give one.
        signal: what the coefficients were fitted to, as `vidaccel.caching.teacache.TeaCache.signal`.
    """

    coefficients: tuple[float, ...]
    slow: float
    fast: float
    signal: str = "time"


TEACACHE_SOURCE = "https://github.com/ali-vilab/TeaCache/tree/7c10efc"
"""Apache-2.0: coefficients from the scripts of each model, thresholds from the READMEs beside them, else the scripts.

Left out are those for the projected time embedding of Wan ("ret_steps"), which is no signal here, and those of models
that no family here covers. There are none for Wan 2.2.
"""

COGVIDEOX_5B = (-1538.80483, 843.202495, -134.363087, 7.97131516, -0.0523162339)

TEACACHE: Mapping[str, TeaCacheNumbers] = {
    "wan2.1-t2v-1.3b": TeaCacheNumbers(
        (2396.76752, -1311.10545, 201.331979, -8.29855975, 0.137887774), slow=0.05, fast=0.08
    ),
    "wan2.1-t2v-14b": TeaCacheNumbers(
        (-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404), slow=0.14, fast=0.2
    ),
    "wan2.1-i2v-14b-480p": TeaCacheNumbers(
        (-302.331670, 223.948934, -52.5463970, 5.87348440, -0.201973289), slow=0.13, fast=0.26
    ),
    "wan2.1-i2v-14b-720p": TeaCacheNumbers(
        (-114.36346466, 65.26524496, -18.82220707, 4.91518089, -0.23412683), slow=0.18, fast=0.3
    ),
    "hunyuanvideo": TeaCacheNumbers(
        (733.226126, -401.131952, 67.5869174, -3.14987800, 0.0961237896), slow=0.1, fast=0.15, signal="input"
    ),
    "cogvideox-2b": TeaCacheNumbers(
        (-31.0658903, 25.4732368, -5.92380459, 1.75769064, -0.00361568434), slow=0.2, fast=0.2
    ),
    "cogvideox-5b": TeaCacheNumbers(COGVIDEOX_5B, slow=0.2, fast=0.2),
    "cogvideox-5b-i2v": TeaCacheNumbers(COGVIDEOX_5B, slow=0.2, fast=0.2),
    "cogvideox1.5-5b": TeaCacheNumbers(
        (250.210439, -165.061612, 35.7804877, -0.781551492, 0.0358559703), slow=0.1, fast=0.3
    ),
    "cogvideox1.5-5b-i2v": TeaCacheNumbers(
        (122.842302, -104.088754, 26.2981677, -0.306009921, 0.0371213220), slow=0.1, fast=0.3
    ),
}
"""By model; source: `TEACACHE_SOURCE`."""
