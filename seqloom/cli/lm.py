"""`seqloom lm`: build, tune and measure n-gram language models for transcription."""

import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import tyro

from seqloom.cli.arguments import JsonFlag, parse, print_json
from seqloom.cli.runs import read_run, read_sources
from seqloom.core.errors import ConfigError

_HELP = """\
usage: seqloom lm {build,tune,perplexity} [arguments]

  build       estimate a model of texts, or of the transcripts that a run learned from
  tune        set the weights of a model by a run's held-out recordings
  perplexity  measure a model on texts

seqloom lm NAME --help explains one.

Example: seqloom lm build texts/*.txt --order 3 --out my.arpa
"""


def main(arguments: list[str]) -> None:
    actions: dict[str, Callable[..., None]] = {"build": build, "tune": tune, "perplexity": perplexity}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_HELP, end="")
        sys.exit(0)
    name, *rest = arguments
    if name not in actions:
        near = get_close_matches(name, actions, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(f"unknown action '{name}'; {hint}known: {', '.join(actions)}")
    parse(f"lm {name}", actions[name], rest)


def build(
    texts: tyro.conf.Positional[tuple[Path, ...]] = (),
    *,
    out: Path,
    order: int = 3,
    unit: Literal["word", "character"] = "word",
    prune: tuple[int, ...] = (),
    text: Literal["english", "as_it_is"] = "english",
    run: Path | None = None,
    as_json: JsonFlag = False,
) -> None:
    """Estimate an n-gram language model by interpolated modified Kneser-Ney and write it as an ARPA file.

    Example: seqloom lm build books/a.txt books/b.txt --order 3 --prune 0 0 1 --out books.arpa

    Example: seqloom lm build --run runs/an4 --out an4.arpa

    Args:
        texts: text files, one sentence a line.
        out: the ARPA file to write; .arpa.gz is compressed.
        order: words of the longest n-grams, 1 to 5.
        unit: what is counted; characters for languages without spaces.
        prune: leave out n-grams of 1, 2, ... words that occur at most so often; the last number holds for longer ones.
        text: english lowers letters, spells numbers and drops punctuation, as training on English does.
        run: add the transcripts that this run learned from.
    """
    from seqloom.systems.deep_speech2.arpa import write_arpa
    from seqloom.systems.deep_speech2.language_model import read_sentences, write_settings
    from seqloom.systems.deep_speech2.ngram import tokens
    from seqloom.systems.deep_speech2.ngram_estimate import estimate
    from seqloom.systems.deep_speech2.prior import Weights

    if not texts and run is None:
        raise ConfigError("nothing to count: name text files, or a run whose transcripts to take (--run)")
    sentences = list(read_sentences(texts, unit, text))
    if run is not None:
        sentences += [tokens(line, unit) for line in _transcripts(run)]
    found = estimate(sentences, order, prune)
    write_arpa(out, found.model)
    write_settings(out, unit, Weights())
    facts = {
        "model": str(out),
        "unit": unit,
        "order": order,
        "sentences": len(sentences),
        "words": len(found.model.words),
        "ngrams": len(found.model),
        "discounts": [list(each) for each in found.discounts],
        "fallback_discounts": list(found.fallbacks),
    }
    if as_json:
        print_json(facts)
        return
    print(
        f"{out}: {len(found.model):,} n-grams of {len(found.model.words):,} {unit}s, from {len(sentences):,} sentences"
    )
    if found.fallbacks:
        lengths = ", ".join(map(str, found.fallbacks))
        print(f"too little text to estimate the discounts of length {lengths}; the usual ones of 0.5, 1, 1.5 are used")


def tune(
    run: tyro.conf.Positional[Path],
    *,
    lm: Path,
    data: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = (),
    limit: int = 200,
    beam: int = 64,
    as_json: JsonFlag = False,
) -> None:
    """Choose the weights of a language model that make the fewest errors, and write them beside it, in LM.json.

    Example: seqloom lm tune runs/an4 --lm an4.arpa

    Args:
        run: a run or model folder of deep_speech2.
        lm: the ARPA language model.
        data: recordings to tune on instead of the run's held-out ones: PATH ...
        limit: most utterances.
        beam: texts that the search keeps after each step.
    """
    if limit < 1:
        raise ConfigError(f"--limit: {limit} is not allowed; it must be a whole number from 1")
    from rich.console import Console

    from seqloom.cli.display import Display
    from seqloom.core.config import check
    from seqloom.systems.deep_speech2 import tune as tuning
    from seqloom.systems.deep_speech2.beam_search import BeamConfig
    from seqloom.systems.deep_speech2.hear import hear
    from seqloom.systems.deep_speech2.language_model import write_settings
    from seqloom.systems.deep_speech2.transcribe import Recogniser

    settings = check(BeamConfig(beam=beam), "command line")
    recogniser = Recogniser(run)
    rules = recogniser.prior(lm)
    assert rules.model
    with Display(Console(stderr=True)) as display:
        heard = hear(recogniser, run, read_sources(data), limit, display.on_prepare)
        found = tuning.tune(heard, rules, settings, progress=display.on_prepare)
    best = found.tried[0]
    write_settings(lm, rules.model.unit, found.weights, wer=best.wer, cer=best.cer, utterances=len(heard), beam=beam)
    if as_json:
        print_json(
            {
                "alpha": best.alpha,
                "beta": best.beta,
                "without": found.without._asdict(),
                "tried": [one._asdict() for one in found.tried],
            }
        )
    else:
        print(tuning.table(found))
        print(f"alpha {best.alpha:g} and beta {best.beta:g} written beside {lm}")


def perplexity(
    lm: tyro.conf.Positional[Path],
    texts: tyro.conf.Positional[tuple[Path, ...]],
    *,
    text: Literal["english", "as_it_is"] = "english",
    as_json: JsonFlag = False,
) -> None:
    """Among how many equally likely words a model chooses on average, ends of sentences counted as words.

    Example: seqloom lm perplexity books.arpa held_out.txt

    Args:
        lm: an ARPA language model.
        texts: text files, one sentence a line.
        text: english lowers letters, spells numbers and drops punctuation.
    """
    from dataclasses import asdict

    from seqloom.core.errors import DataError
    from seqloom.systems.deep_speech2.arpa import read_arpa
    from seqloom.systems.deep_speech2.language_model import read_sentences, read_settings

    model = read_arpa(lm)
    sentences = list(read_sentences(texts, read_settings(lm).get("unit", "word"), text))
    if not sentences:
        raise DataError(f"{', '.join(map(str, texts)) or 'no files'}: there is no text to measure on")
    found = model.perplexity(sentences)
    if as_json:
        print_json(asdict(found))
    else:
        print(
            f"perplexity {found.perplexity:,.2f}, {found.without_unknown:,.2f} without unknown words "
            f"({found.tokens:,} words and ends of {found.sentences:,} sentences, {found.unknown:,} unknown)"
        )


def _transcripts(run: Path) -> list[str]:
    """The transcripts that a run learned from, without those it held back."""
    from rich.console import Console

    from seqloom.cli.display import Display
    from seqloom.core import rooms
    from seqloom.systems.deep_speech2.data import prepare

    settings: Any = read_run(run / "run.yaml")
    model = rooms.load(run)
    with Display(Console(stderr=True)) as display:
        found = prepare(
            settings.task.data, model.config.output_length, len(model.alphabet), settings.seed, display.on_prepare,
            model.alphabet,
        )  # fmt: skip
    return [one.text for one in found.train]
