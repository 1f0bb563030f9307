"""`seqloom transcribe`: recordings to text, JSON, subtitles or CTM."""

import contextlib
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import tyro

from seqloom.cli.arguments import parse
from seqloom.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from seqloom.systems.deep_speech2.beam_search import BeamConfig
    from seqloom.systems.deep_speech2.subtitles import Format

STANDARD_INPUT = "-"
HOTWORD_NATS = 5.0


def main(arguments: list[str]) -> None:
    parse("transcribe", transcribe, arguments)


def transcribe(
    sources: tyro.conf.Positional[tuple[str, ...]],
    *,
    run: Path,
    lm: Path | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    lexicon: Path | None = None,
    hotword: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    beam: int = 128,
    best: int = 1,
    format: str = "text",
    out: Path | None = None,
) -> None:
    """Write down what is said in recordings. Those that cannot be read are named, and the others go on; leaves with
    code 2 if there was one.

    Example: seqloom transcribe talk.flac --run runs/an4 --format srt

    Example: seqloom transcribe recordings/ --run runs/an4 --lm an4.arpa --format json --out transcripts/

    Args:
        sources: wav, flac, ogg and other sound files; folders of them; or - for standard input.
        run: a run or model folder of deep_speech2.
        lm: an ARPA language model (seqloom lm build), also .gz.
        alpha: weight of the language model, in place of the tuned one.
        beta: added for every word, in place of the tuned one.
        lexicon: a text file with the only words that may be, one a line.
        hotword: WORD or WORD=NATS, a word that is likelier than usual; may be repeated.
        beam: texts that the search keeps after each step.
        best: texts given for each segment in JSON, the best and alternatives.
        format: text, json, srt, vtt or ctm.
        out: a folder for one file each; without it everything is printed.
    """
    form = read_format(format)
    if best < 1:
        raise ConfigError(f"--best: {best} is not allowed; it must be a whole number from 1")
    found = list(_found(sources))
    if out is None and form in ("srt", "vtt") and len(found) > 1:
        raise ConfigError(f"--format {form}: {len(found)} recordings are {len(found)} files; name a folder (--out)")
    names = None if out is None else _names(out, found, form)
    from rich.console import Console

    from seqloom.cli.display import Display
    from seqloom.systems.deep_speech2.beam_search import Decoder
    from seqloom.systems.deep_speech2.subtitles import written
    from seqloom.systems.deep_speech2.transcribe import Failed, Recogniser, transcribe_sources

    settings = _beam(beam)
    recogniser = Recogniser(run)
    decoder = Decoder(recogniser.prior(lm, alpha, beta, lexicon, _hotwords(hotword)), settings)
    failed = 0
    with contextlib.ExitStack() as stack:
        display = stack.enter_context(Display(Console(stderr=True)))
        opened = [(name, _opened(name, stack)) for name, _ in found]
        for number, result in enumerate(transcribe_sources(recogniser, opened, decoder, best), 1):
            if isinstance(result, Failed):
                failed += 1
                print(f"seqloom: {result.error}", file=sys.stderr)
            elif names is not None:
                _write(names[number - 1], written(result, form))
            else:
                title = f"{result.name}\t" if form == "text" and len(found) > 1 else ""
                print(f"{title}{written(result, form)}", end="", flush=True)
            display.on_prepare("transcribing", number / len(found))
    if failed:
        raise DataError(f"{failed} of {len(found)} recordings could not be transcribed")


def read_format(name: str) -> "Format":
    """
    Raises:
        ConfigError: there is no such format.
    """
    from seqloom.systems.deep_speech2.subtitles import FORMATS

    for form in FORMATS:
        if form == name:
            return form
    raise ConfigError(f"--format: '{name}' is not known; known: {', '.join(FORMATS)}")


def _beam(width: int) -> "BeamConfig":
    from seqloom.core.config import check
    from seqloom.systems.deep_speech2.beam_search import BeamConfig

    return check(BeamConfig(beam=width), "command line")


def _hotwords(given: Iterable[str]) -> dict[str, float]:
    found = {}
    for each in given:
        word, equals, nats = each.partition("=")
        try:
            found[word.lower()] = float(nats) if equals else HOTWORD_NATS
        except ValueError:
            raise ConfigError(f"--hotword {each}: '{nats}' is not a number; write for instance {word}=5") from None
    return found


def _found(sources: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Names of recordings, and what a file for each is called, relative to a folder."""
    from seqloom.systems.deep_speech2.recordings import SOUNDS

    for source in sources:
        path = Path(source)
        if source == STANDARD_INPUT:
            yield source, Path("standard_input")
        elif path.is_dir():
            inside = sorted(each for each in path.rglob("*") if each.suffix.lower() in SOUNDS)
            if not inside:
                raise DataError(f"{path}: no recordings in this folder ({', '.join(sorted(SOUNDS))})")
            yield from ((str(each), each.relative_to(path)) for each in inside)
        else:
            yield source, Path(path.name)


def _names(out: Path, found: list[tuple[str, Path]], form: "Format") -> list[Path]:
    """The files to write; two recordings of one name keep their endings."""
    from seqloom.systems.deep_speech2.subtitles import SUFFIX

    plain = Counter(name.with_suffix("") for _, name in found)
    names = [
        out / (name.with_suffix(SUFFIX[form]) if plain[name.with_suffix("")] == 1 else f"{name}{SUFFIX[form]}")
        for _, name in found
    ]
    twice = [str(name) for name, times in Counter(names).items() if times > 1]
    if twice:
        raise ConfigError(f"--out: several recordings would be written to {twice[0]}; transcribe them one by one")
    return names


def _opened(name: str, stack: contextlib.ExitStack) -> Path | BinaryIO:
    if name != STANDARD_INPUT:
        return Path(name)
    kept = tempfile.TemporaryFile()  # noqa: SIM115  # readers of audio go back to the beginning
    stack.enter_context(kept)
    shutil.copyfileobj(sys.stdin.buffer, kept)
    kept.seek(0)
    return kept


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error
