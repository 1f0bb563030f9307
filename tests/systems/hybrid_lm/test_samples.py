"""A run writes down what its model makes of a held-out beginning, and its report shows it."""

from dataclasses import replace
from pathlib import Path

import torch

from micro_runs import narrow, write_texts
from seqloom.core.logs import read_metrics
from seqloom.systems.hybrid_lm.evaluate import most_likely
from seqloom.train.loop import train
from tiny_models import make, tokens


def test_every_evaluation_leaves_a_text(tmp_path: Path) -> None:
    run = narrow(write_texts(tmp_path / "texts"))()
    run = replace(run, train=replace(run.train, evaluate_every=2, save_every=3))
    folder = train(run, tmp_path / "run")
    samples = [record for record in read_metrics(folder.metrics_path) if record["kind"] == "sample"]
    assert [sample["step"] for sample in samples] == [2, 3]
    assert samples[0]["prompt"] == samples[1]["prompt"]
    assert all(sample["prompt"] and sample["text"] for sample in samples)
    assert "Written after step 3" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_the_likeliest_tokens_are_those_of_whole_passes() -> None:
    model = make("mtp")
    prompt = tokens(1, 7)
    whole = prompt
    with torch.no_grad():
        for _ in range(9):
            whole = torch.cat([whole, model(whole)[:, -1:].argmax(-1)], 1)
    assert most_likely(model, prompt, 9) == whole[0, 7:].tolist()
