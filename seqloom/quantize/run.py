"""The verb: quantize a run or model folder into a new folder, whatever system it is of."""

from pathlib import Path

from seqloom.core import rooms
from seqloom.core.errors import ConfigError
from seqloom.core.progress import Progress
from seqloom.data.config import SourceConfig
from seqloom.quantize.config import QuantizeConfig
from seqloom.quantize.report import Report


def quantize(
    source: str | Path,
    into: str | Path,
    config: QuantizeConfig | None = None,
    sources: tuple[SourceConfig, ...] = (),
    progress: Progress | None = None,
) -> Report:
    """Quantize the weights of a model after training, and write it in a public layout.

    Args:
        source: a run folder (its newest whole step is taken) or a model folder.
        into: new model folder.
        sources: text to calibrate and measure on; None takes that of the run.
    Raises:
        ConfigError: the settings cannot be met by this model, or nothing says what to calibrate on.
        CheckpointError: the source is damaged, or `into` exists or cannot be written.
        DataError: the text cannot be used.
        NumericsError: weights or activations are not finite.
    """
    source = Path(source)
    folder, verified = rooms.model_folder(source)
    system = rooms.owner(folder)
    if system != rooms.MAIN_SYSTEM:
        raise ConfigError(f"{source}: is a model of {system}; quantized are those of {rooms.MAIN_SYSTEM} only")
    report: Report = rooms.part(system, "quantize").quantize(
        folder, Path(into), config or QuantizeConfig(), sources, progress, verified=verified
    )
    return report
