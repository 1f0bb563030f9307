"""From the number of processes and a run's settings to the grid they form.

Ranks are numbered with tensor fastest, then context, then data, so that those who talk most are neighbours. Experts
are dealt out among `expert` neighbours of the flattened axes data and context.
"""

from dataclasses import replace

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from seqloom.core.distributed import Axis, Ranks, local
from seqloom.core.errors import ConfigError
from seqloom.train.config import ParallelConfig


def resolve_parallel(parallel: ParallelConfig, size: int) -> ParallelConfig:
    """The settings with `data` decided.

    Raises:
        ConfigError: they do not fit the number of processes.
    """
    inner = parallel.context * parallel.tensor
    start = f"torchrun --nproc-per-node {max(2, inner * (parallel.data or 1))} -m seqloom train ..."
    if size % inner or (parallel.data is not None and parallel.data * inner != size):
        data = "" if parallel.data is None else f"data = {parallel.data}, "
        raise ConfigError(
            f"train.parallel: {data}context = {parallel.context}, tensor = {parallel.tensor} do not fit "
            f"{size} process{'es' if size > 1 else ''}; their product must be the number of processes. "
            f"Change them, or start as many: {start}"
        )
    data_ranks = size // inner
    if data_ranks * parallel.context % parallel.expert:
        raise ConfigError(
            f"train.parallel.expert: {parallel.expert} does not divide data · context = "
            f"{data_ranks * parallel.context}, the ranks that experts can be dealt out among"
        )
    return replace(parallel, data=data_ranks)


def arrange(parallel: ParallelConfig, rank: int, size: int, device: torch.device) -> Ranks:
    """The grid of resolved settings; collective."""
    assert parallel.data is not None
    data, context, tensor, expert = parallel.data, parallel.context, parallel.tensor, parallel.expert
    grid = init_device_mesh(device.type, (data, context, tensor), mesh_dim_names=("data", "context", "tensor"))
    flat = init_device_mesh(device.type, (data * context, tensor), mesh_dim_names=("batch", "tensor"))
    deal = init_device_mesh(
        device.type, (data * context // expert, expert, tensor), mesh_dim_names=("twins", "expert", "tensor")
    )
    return Ranks(
        rank=rank,
        size=size,
        local_size=local()[1],
        data=_axis(grid["data"]),
        context=_axis(grid["context"]),
        tensor=_axis(grid["tensor"]),
        batch=_axis(flat["batch"]),
        expert=_axis(deal["expert"]),
        twins=_axis(deal["twins"]),
    )


def _axis(mesh: DeviceMesh) -> Axis:
    return Axis(mesh.get_local_rank(), mesh.size(), mesh) if mesh.size() > 1 else Axis()
