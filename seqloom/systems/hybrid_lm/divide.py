"""What of a run must divide evenly for a grid of processes; all that does not is named before anything is allocated."""

from seqloom.core.errors import ConfigError
from seqloom.nn.stability import PLAIN
from seqloom.systems.hybrid_lm.config import Run
from seqloom.train.config import ParallelConfig


def refuse_indivisible(run: Run, parallel: ParallelConfig) -> None:
    """
    Raises:
        ConfigError: sizes that do not divide, or methods that cannot be divided; all are named.
    """
    if parallel.single:
        return
    found = [*_rows(run, parallel), *_by_tensor(run, parallel.tensor), *_by_context(run, parallel)]
    found += [*_by_expert(run, parallel.expert), *_by_block(run, parallel.tensor)]
    if run.model.stability.sigma_reparam:
        found.append("model.stability.sigma_reparam needs whole matrices after every step, and runs in one process")
    if run.adapter is not None and (parallel.tensor > 1 or parallel.expert > 1):
        found.append("adapter: adapters sit on whole matrices; use train.parallel.data and context only")
    if found:
        raise ConfigError("this run cannot be divided so:\n" + "\n".join(f"  {line}" for line in found))


def _rows(run: Run, parallel: ParallelConfig) -> list[str]:
    assert parallel.data is not None
    return [
        *_indivisible("task.batch_rows", run.task.batch_rows, "data", parallel.data),
        *_indivisible("task.sequence_length", run.task.sequence_length, "context", parallel.context),
    ]


def _by_tensor(run: Run, count: int) -> list[str]:
    if count == 1:
        return []
    model, found = run.model, list[str]()
    sizes = {
        "model.mamba": (model.mamba, ("heads", "groups")),
        "model.attention": (model.attention, ("heads", "kv_heads")),
        "model.mlp": (model.mlp, ("hidden_width",)),
        "model.moe": (model.moe, ("expert_width", "shared_width")),
    }
    for part, (settings, names) in sizes.items():
        for name in names if settings is not None else ():
            found += _indivisible(f"{part}.{name}", getattr(settings, name), "tensor", count)
    for name in ("qk_norm", "v_norm"):
        if getattr(model.stability, name) != getattr(PLAIN, name):
            found.append(f"model.stability.{name} has gains that heads share; use it without train.parallel.tensor")
    return found


def _by_block(run: Run, count: int) -> list[str]:
    """Shares that would begin within a block of the number format, whose scale then would depend on the grid."""
    block = run.precision.largest_block()
    if count == 1:
        return []
    if run.precision.mor.partition == "channel":
        return ["precision.mor.partition = 'channel' decides about lines that train.parallel.tensor cuts"]
    if block == 1:
        return []
    model, sizes = run.model, dict[str, int]()
    if model.mamba is not None:
        m = model.mamba
        sizes |= {"heads · head_width": m.heads * m.head_width, "groups · state_width": m.groups * m.state_width}
        sizes = {f"model.mamba.{name}": size for name, size in (sizes | {"heads": m.heads}).items()}
    if model.attention is not None:
        a = model.attention
        sizes |= {
            "model.attention.heads · head_width": a.heads * a.head_width,
            "model.attention.kv_heads · head_width": a.kv_heads * a.head_width,
        }
    if model.mlp is not None:
        sizes["model.mlp.hidden_width"] = model.mlp.hidden_width
    if model.moe is not None:
        sizes["model.moe.expert_width"] = model.moe.expert_width
        sizes["model.moe.shared_width"] = model.moe.shared_width
    return [
        f"{name} = {size} gives each of train.parallel.tensor = {count} ranks no whole blocks of {block} numbers "
        f"(precision.recipe = '{run.precision.recipe}')"
        for name, size in sizes.items()
        if size % (count * block)
    ]


def _by_context(run: Run, parallel: ParallelConfig) -> list[str]:
    count, tensor = parallel.context, parallel.tensor
    if count == 1:
        return []
    model, found = run.model, list[str]()
    if model.mamba is not None:
        found += _indivisible("model.mamba.heads", model.mamba.heads, "context · tensor", count * tensor)
        found += _either("model.mamba.groups", model.mamba.groups, count, tensor)
    if model.attention is not None:
        found += _indivisible("model.attention.heads", model.attention.heads, "context · tensor", count * tensor)
        found += _either("model.attention.kv_heads", model.attention.kv_heads, count, tensor)
    return found


def _by_expert(run: Run, count: int) -> list[str]:
    if count == 1:
        return []
    if run.model.moe is None:
        return [f"train.parallel.expert = {count}: the model has no experts"]
    return _indivisible("model.moe.experts", run.model.moe.experts, "expert", count)


def _indivisible(name: str, size: int, axis: str, count: int) -> list[str]:
    return [f"{name} = {size} is not divisible by train.parallel.{axis} = {count}"] if size % count else []


def _either(name: str, size: int, count: int, tensor: int) -> list[str]:
    size //= tensor  # what does not divide is named elsewhere
    if size == 0 or size % count == 0 or count % size == 0:
        return []
    return [
        f"{name} = {size} (on one tensor rank) neither divides train.parallel.context = {count} nor is divided by it"
    ]
