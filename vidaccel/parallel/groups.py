"""Two groups of processes that compute one clip: which a process belongs to, and that no split goes across them."""

from __future__ import annotations

from typing import Any

from torch import nn

from vidaccel.parallel import plans
from vidaccel.parallel.split import Group

GROUPS = 2
MESH_DIM = "guidance"


def group_of(mesh: Any) -> Group:
    """This process and its counterpart of the other group.

    Raises:
        RuntimeError: torch.distributed has no process group.
        ValueError: the processes are not two groups.
    """
    from torch import distributed

    if not distributed.is_available() or not distributed.is_initialized():
        raise RuntimeError("guidance_parallel() needs several processes: start them by torchrun, and call "
                           "torch.distributed.init_process_group() first")  # fmt: skip
    processes = distributed.get_world_size()
    if mesh is None:
        if processes != GROUPS:
            raise ValueError(f"{processes} process{'es' * (processes > 1)} without a mesh, where guidance has 2 groups "
                             'of one: start 2, or give a mesh with a dimension "guidance" of size 2')  # fmt: skip
        return Group(distributed.get_rank(), GROUPS, distributed.group.WORLD)
    if MESH_DIM not in (mesh.mesh_dim_names or ()) or mesh[MESH_DIM].size() != GROUPS:
        raise ValueError(f"a mesh of shape {tuple(mesh.mesh.shape)} with dimensions {mesh.mesh_dim_names} has no "
                         f'dimension "guidance" of size {GROUPS}')  # fmt: skip
    part = mesh[MESH_DIM]
    return Group(part.get_local_rank(), part.size(), part.get_group())


def check_split(transformer: nn.Module, group: Group) -> None:
    """Refuse a clip that is split over processes of both guidance groups.

    Raises:
        ValueError: it is.
    """
    from torch import distributed

    config = getattr(plans.configured(transformer), "context_parallel_config", None)
    if config is None:
        return
    ranks = distributed.get_process_group_ranks(config._flattened_mesh.get_group())
    peers = distributed.get_process_group_ranks(group.process_group)
    if len(set(ranks) & set(peers)) > 1:
        raise ValueError(f"the clip is split over the processes {ranks}, which are of both guidance groups: split it "
                         "inside each, by ContextParallelConfig(mesh=...) with the mesh given here")  # fmt: skip
