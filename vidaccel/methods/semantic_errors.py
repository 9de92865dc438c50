"""What it costs to let a cluster's mean stand for its keys: a score to choose by; see `vidaccel.methods.semantic`.

That clusters are chosen by the error of their compensation is SVG-EAR's idea; the formula here is an expansion of our
own. Nothing waits for a GPU.
"""

from __future__ import annotations

from torch import Tensor, cdist

from vidaccel.methods.semantic_tiles import Clusters, shares
from vidaccel.planning.groups import group_moments
from vidaccel.planning.order import RUN

SPREAD = 4.0
"""The largest variance of scores that counts: beyond, terms that the expansion leaves out would matter more."""
TIES = 1e-9
"""Share of the attention in a score: among clusters of equal keys, where nothing is lost, the heavier ones go first."""


def errors(clusters: Clusters, key: Tensor, value: Tensor) -> Tensor:
    """How far each query cluster's output would be off if each key cluster's mean stood for it.

    A cluster of weight P spreads around its means: its keys' scores by a variance s, its values by a deviation d. To
    second order in the scores, the exponentials' covariance with the values moves the output by up to ``sqrt(s) d P``,
    and the weight that the mean lacks, ``s / 2 P``, by as much times the distance of the cluster's mean value from the
    output:

    ``E_ij = P_ij (sqrt(s_ij) d_j + s_ij / 2 |v_j - o_i|)``, with ``s_ij = sum over dimensions of q_i^2 var(K_j) / D``,
    at most `SPREAD`, and ``o_i = sum over j of P_ij v_j``; q is a centroid.

    Args:
        clusters: of the video's queries and keys.
        key, value: ``[batch, video tokens, heads, head_dim]``; views will do.

    Returns:
        fp32 ``[lanes, query, key clusters]``; 0 for clusters without keys.
    """
    order = clusters.keys.order
    variances = group_moments(key, order.starts, order=order.order)[1]
    means, deviations = group_moments(value, order.starts, order=order.order)
    variances, means = (each.transpose(1, 2).flatten(0, 1) for each in (variances, means))
    deviation = deviations.sum(3).sqrt_().transpose(1, 2).flatten(0, 1)
    del deviations
    scores, query = shares(clusters), clusters.queries.centroids
    step = max(1, RUN // scores[0].numel())
    for lane in range(0, len(scores), step):
        some = slice(lane, lane + step)
        scores[some] *= _each(scores[some], query[some], variances[some], means[some], deviation[some, None])
    return scores


def _each(share: Tensor, query: Tensor, variances: Tensor, means: Tensor, deviation: Tensor) -> Tensor:
    """The error of some lanes for each unit of attention; in place, as these are the largest tensors."""
    spread = (query.square() @ variances.transpose(1, 2)).div_(query.shape[2]).clamp_(max=SPREAD)
    each = cdist(share @ means, means).mul_(spread).mul_(0.5)
    return each.add_(spread.sqrt_().mul_(deviation)).add_(TIES)
