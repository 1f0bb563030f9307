"""The command `seqloom`: finds the verb, runs it, and turns errors meant for the user into one message.

Each verb is a function in a file of this folder that takes its arguments as strings. A verb's file is imported only
when it is called, and imports torch only after its arguments have been understood, so every `--help` is instant.
"""

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches

import seqloom
from seqloom.core.distributed import announce, world
from seqloom.core.errors import ConfigError, SeqloomError

VERBS = {
    "demo": "corpus, tokenizer, training, evaluation and a sample: the whole walk in three minutes",
    "train": "train a recipe, a run.yaml, or go on with a run folder",
    "show": "settings, size and cost of a recipe or run",
    "list": "systems and their recipes",
    "report": "a run on one page: curves, what happened inside, data, settings",
    "compare": "runs beside one another: measures, differing settings, curves",
    "study": "claims of papers as programs, with what reproduced and what did not",
    "config": "JSON Schema of a run file, for editors",
    "generate": "continue prompts with a trained model",
    "chat": "talk to a trained model in the terminal",
    "evaluate": "bits per byte, perplexity and benchmark tasks of a trained model",
    "transcribe": "speech to text: files and folders, as text, JSON, subtitles",
    "align": "when each word and character of a text is spoken in a recording",
    "lm": "n-gram language models for speech recognition: build, tune, perplexity",
    "play": "watch an agent play, and where it looks",
    "serve": "a trained model over HTTP and WebSocket",
    "listen": "feed a recording to a server as if it were being spoken",
    "convert": "write a model folder anew in the published layout, for here or for other tools",
    "quantize": "a trained model in FP8 or NVFP4, for vLLM or transformers, and what it costs",
    "merge": "one model of a run's last checkpoints, or of adapters and their base",
}

_HELP = """\
usage: seqloom VERB [arguments]

{verbs}

seqloom VERB --help explains one verb.  --version prints the version.
--debug anywhere shows the traceback of an error.

Begin with: seqloom demo
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; leaves with code 2 after a user's mistake, 128 + N after signal N, 1 after a slip of ours."""
    rest = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in rest
    if debug:
        rest.remove("--debug")
    try:
        _dispatch(rest)
        sys.stdout.flush()
    except SeqloomError as error:
        if debug:
            raise
        if announce(error):
            rank, size = world()
            print(f"seqloom: {f'rank {rank}: ' if size > 1 else ''}{error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        if debug:
            raise
        print("seqloom: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe has left
        _drop_output()
        sys.exit(141)
    except OSError as error:
        if debug or error.errno != errno.ENOSPC:
            raise
        _drop_output()
        print(f"seqloom: the output cannot be written: {error.strerror}", file=sys.stderr)
        sys.exit(2)


def _drop_output() -> None:
    """So that the interpreter does not try to write the rest when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_HELP.format(verbs="\n".join(f"  {verb:12}{line}" for verb, line in VERBS.items())), end="")
        return
    verb, *rest = arguments
    if verb == "--version":
        print(f"seqloom {seqloom.__version__}")
        return
    if verb not in VERBS:
        near = get_close_matches(verb, VERBS, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(f"unknown verb '{verb}'; {hint}known: {', '.join(VERBS)}")
    importlib.import_module(f"seqloom.cli.{verb}").main(rest)


if __name__ == "__main__":
    main()
