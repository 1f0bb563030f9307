"""`seqloom convert`: a model folder written anew in the published layout, for here or for other tools."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from seqloom.cli.arguments import JsonFlag, parse, print_json
from seqloom.core import rooms
from seqloom.core.errors import ConfigError


def main(arguments: list[str]) -> None:
    parse("convert", convert, arguments)


def convert(
    source: tyro.conf.Positional[Path],
    into: tyro.conf.Positional[Path],
    *,
    verify: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    dtype: Literal["keep", "bf16", "fp32", "q8_0", "q4_0"] = "keep",
    experts: Literal["separate", "stacked"] = "separate",
    shard_gib: float = 5.0,
    as_json: JsonFlag = False,
) -> None:
    """Write a model folder anew, tensor by tensor: of any size on any machine, from any published dialect and layout.

    Example: seqloom convert runs/demo demo-bf16 --dtype bf16 --verify

    Example: seqloom convert runs/demo demo.gguf --dtype q8_0

    Args:
        source: a run folder (its newest whole step is taken) or a model folder.
        into: new model folder; or a file FILE.gguf for llama.cpp, which holds the tokenizer as well.
        verify: compare every tensor with the source, and the logits with those of transformers where it is installed.
        dtype: number format of the weights, q8_0 and q4_0 for GGUF only; router bias, A_log, D and dt_bias are FP32
            in each case.
        experts: a tensor for each expert's matrix, as published, or all of a layer in one.
        shard_gib: most GiB in one weights file.
    """
    if not shard_gib > 0:
        raise ConfigError(f"--shard-gib: {shard_gib} is not allowed; it must be a number above 0")
    from rich.console import Console

    from seqloom.cli.display import Display

    folder, verified = rooms.model_folder(source)
    system = rooms.owner(folder)
    if into.suffix == ".gguf":
        if verify or experts == "stacked":
            raise ConfigError(f"{into}: --verify and --experts stacked are for model folders, not for a GGUF file")
        with Display(Console(stderr=True)) as display:
            written = rooms.part(system, "gguf").write_gguf(
                folder, into, format=dtype, verified=verified, progress=display.on_prepare
            )
        if as_json:
            print_json({"source": str(folder), "file": str(into), **asdict(written)})
        else:
            print("\n".join([_stored(folder, into, written), *written.remarks]))
        return
    if dtype in ("q8_0", "q4_0"):
        raise ConfigError(f"--dtype {dtype}: of GGUF files; name a file FILE.gguf to write, or see seqloom quantize")
    with Display(Console(stderr=True)) as display:
        converted = rooms.part(system, "convert").convert(
            folder,
            into,
            dtype=dtype,
            experts=experts,
            shard_bytes=int(shard_gib * 2**30),
            verified=verified,
            progress=display.on_prepare,
        )
        compared = rooms.part(system, "verify").verify(folder, into, display.on_prepare) if verify else None
    if as_json:
        facts = {"source": str(folder), "folder": str(into), **asdict(converted)}
        print_json(facts if compared is None else {**facts, "verified": asdict(compared)})
    else:
        print("\n".join(_lines(folder, into, converted, compared)))


def _stored(folder: Path, into: Path, written: Any) -> str:
    from seqloom.core.readable import size

    stored = ", ".join(f"{size(count)} {dtype}" for dtype, count in written.stored_as.items())
    return f"{into}: {written.tensors:,} tensors from {folder}, {stored}"


def _lines(folder: Path, into: Path, converted: Any, compared: Any) -> list[str]:
    lines = [_stored(folder, into, converted)]
    if converted.carried:
        lines.append(f"taken along: {', '.join(converted.carried)}")
    if converted.left_behind:
        lines.append(f"left behind: {', '.join(converted.left_behind)}")
    if compared is not None:
        lines.append(f"verified: {compared.tensors:,} tensors equal the source bit for bit")
        if compared.logits_difference is not None:
            lines.append(
                f"          logits differ by {compared.logits_difference:.2g} at most, the largest is "
                f"{compared.logits_scale:.3g}"
            )
        lines.append(f"          {compared.remark}")
    return lines
