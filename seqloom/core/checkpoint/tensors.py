"""Tensors on disk: safetensors, and nothing that could run code.

Every tensor is stored in full under its name. Views, transposes and tensors that share memory are packed first, since
the format holds plain runs of bytes; whoever wants a tied weight stored once leaves it out.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from seqloom.core.errors import CheckpointError


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors from any device to one .safetensors file.

    Raises:
        CheckpointError: the file cannot be written.
    """
    try:
        path.touch()
        mode = path.stat().st_mode
        # The mark "pt" is required by readers that serve several frameworks.
        save_file(_packed(tensors), path, metadata={"format": "pt"})
        path.chmod(mode)  # safetensors makes files that only their owner may read
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a .safetensors file into CPU memory of their own.

    Raises:
        CheckpointError: the file is missing, cannot be read, cut short, or not a safetensors file.
    """
    try:
        mapped = load_file(path, device="cpu")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or not a safetensors file: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    return {name: tensor.clone() for name, tensor in mapped.items()}  # a mapped file must not change or go; a copy may


def _packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    packed: dict[str, Tensor] = {}
    stored: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().to("cpu").contiguous()
        memory = tensor.untyped_storage().data_ptr()
        packed[name] = tensor.clone() if memory in stored else tensor
        stored.add(memory)
    return packed
