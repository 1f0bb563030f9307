"""What a run shows: lines for programs and logs, one live line for people."""

import io
from pathlib import Path

from rich.console import Console

from seqloom.cli.display import Display
from seqloom.core.rooms import recipe
from seqloom.train.observer import StartReport

STEPS = recipe("hybrid_lm/tiny").train.steps


def watch(console: Console, steps: int = 20) -> None:
    run = recipe("hybrid_lm/tiny")
    report = StartReport(
        run=run,
        device="cpu",
        parameters=4_900_000,
        first_step=0,
        unit="tokens",
        shown={"bits_per_byte": "bits/byte"},
        summary=["tokenizer  320 entries", "first row: def f():"],
        formats={"head": "fp32"},
        needed_bytes=300_000_000,
        available_bytes=20_000_000_000,
    )
    with Display(console) as display:
        display.on_prepare("reading python:stdlib", 0.0)
        display.on_prepare("reading python:stdlib", 0.5)
        display.on_prepare("reading python:stdlib", 1.0)
        display.on_start(report)
        for step in range(1, steps + 1):
            display.on_step(
                {
                    "step": step,
                    "loss": 8.0 - step / 10,
                    "bits_per_byte": 3.5,
                    "tokens_per_second": 5e3,
                    "memory_bytes": 7e8,
                }
            )
        display.on_eval({"step": steps, "loss": 6.0, "perplexity": 403.4, "tokens": 16384})
        display.on_save(steps, Path("runs/tiny"))
        display.on_message("step 10: model.safetensors is damaged; using step 5")


def test_piped_output_is_plain_lines() -> None:
    file = io.StringIO()
    watch(Console(file=file, width=80))
    text = file.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    assert lines.count("reading python:stdlib") == 1
    steps = [line.split()[1] for line in lines if line.startswith("step ") and "left" in line]
    assert steps == [f"1/{STEPS}", f"10/{STEPS}", f"20/{STEPS}"]  # log_every is 10
    (line,) = [line for line in lines if line.startswith(f"step 10/{STEPS}")]
    assert all(part in line for part in ("loss 7.000", "3.500 bits/byte", "5,000 tokens/s", "700 MB"))
    assert "validation after step 20: loss 6, perplexity 403.4, tokens 16,384" in lines
    assert any("def f():" in line for line in lines)
    assert "4,900,000 parameters in fp32 on cpu; about 300 MB of 20 GB memory needed" in lines


def test_a_terminal_gets_one_live_line() -> None:
    file = io.StringIO()
    watch(Console(file=file, force_terminal=True, width=140))
    text = file.getvalue()
    assert "\x1b[" in text
    assert f"20/{STEPS}" in text
    assert f"step 10/{STEPS}" not in text
    assert "validation after step 20" in text
