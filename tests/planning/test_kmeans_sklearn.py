"""k-means against scikit-learn's, from the same start."""

from __future__ import annotations

import pytest
import torch
from sklearn import cluster

from vidaccel.planning.kmeans import kmeans, sample


@pytest.mark.parametrize("rounds", [1, 5, 60])
@pytest.mark.parametrize("blobs", [0, 12])
def test_inertia_is_that_of_scikit_learn(rounds: int, blobs: int) -> None:
    generator = torch.Generator().manual_seed(rounds + blobs)
    points = torch.randn(2, 900, 2, 16, generator=generator)
    if blobs:
        # Not so far apart that a cluster loses its last token: scikit-learn moves such a one elsewhere, here it stays.
        centres = torch.randn(blobs, 16, generator=generator)
        points += centres[torch.randint(blobs, (2, 900, 2), generator=generator)]
    start = sample(points, 20, seed=4)
    found = kmeans(points, 20, iterations=rounds, start=start)
    assert (found.sizes > 0).all()
    for lane, tokens in enumerate(points.transpose(1, 2).flatten(0, 1)):
        theirs = cluster.KMeans(20, init=start[lane].numpy(), n_init=1, max_iter=rounds, tol=0, algorithm="lloyd")
        theirs.fit(tokens.numpy())
        # scikit-learn assigns once more after the last move of the centroids.
        ours = torch.cdist(tokens.double(), found.centroids[lane].double()).square().amin(1).sum()
        assert float(ours) == pytest.approx(theirs.inertia_, rel=1e-3)
