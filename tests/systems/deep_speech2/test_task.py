"""The task on the common loop: training, going on, micro-batches, evaluation."""

from dataclasses import replace

import pytest
import torch

from seqloom.core.errors import ConfigError
from seqloom.core.logs import read_metrics
from seqloom.data.config import SourceConfig
from seqloom.systems.deep_speech2.budget import training_bytes
from seqloom.systems.deep_speech2.config import AugmentConfig
from seqloom.systems.deep_speech2.evaluate import evaluate, evaluate_errors
from seqloom.systems.deep_speech2.recipes import tiny
from seqloom.systems.deep_speech2.task import SpeechTask
from seqloom.train.loop import train
from seqloom.train.run import Run
from tiny_speech import narrow, write_corpus

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("speech") / "a")


def begin(run: Run):
    torch.manual_seed(0)
    return SpeechTask(run, CPU), run.model.build()


@pytest.mark.full
def test_a_run_is_measured_like_its_last_step(corpus, tmp_path):
    train(narrow(corpus), tmp_path)
    last = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["kind"] == "valid"][-1]
    found = evaluate(tmp_path, limit=4)
    assert {name: last[name] for name in found} == pytest.approx(found)
    assert evaluate(tmp_path)["utterances"] == 6
    named = evaluate(tmp_path, (SourceConfig(path=str(corpus)),), 10)
    assert named["utterances"] == 10
    rates, text = evaluate_errors(tmp_path)
    assert rates == pytest.approx({name: value for name, value in evaluate(tmp_path).items() if name != "loss"})
    assert f"WER {rates['wer']:.2%}" in text


def test_the_model_learns_statistics_and_alphabet_with_its_first_batch(corpus):
    task, model = begin(narrow(corpus))
    (micro,) = task.next_batch(model, 0)
    assert model.alphabet == task.data.alphabet
    assert not torch.equal(model.normaliser.mean, torch.zeros(20))
    again = task.next_batch(model, 0)[0]
    assert all(torch.equal(first, second) for first, second in zip(micro, again, strict=True))
    assert micro.lengths.tolist() == sorted(micro.lengths.tolist())  # SortaGrad


def test_the_loss_is_torchs_and_counts_utterances(corpus):
    task, model = begin(narrow(corpus))
    (micro,) = task.next_batch(model, 2)
    logits, steps = model(micro.features, micro.lengths)
    expected = torch.nn.functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), micro.targets, steps, micro.counts, reduction="sum"
    )
    loss = task.loss(model, micro)
    torch.testing.assert_close(loss.total, expected)
    assert loss.units == 4
    padding = 1 - float(micro.lengths.sum()) / micro.features[:, 0].numel()
    assert float(loss.metrics["padding"]) / 4 == pytest.approx(padding)


def test_statistics_of_a_batch_cannot_be_taken_in_pieces(corpus):
    run = narrow(corpus)
    with pytest.raises(ConfigError, match=r"task\.micro_rows: with model\.norm 'batch'"):
        replace(run, task=replace(run.task, micro_rows=2))


def test_settings_without_effect_are_refused(corpus):
    run = narrow(corpus)
    with pytest.raises(ConfigError, match="gain_db"):
        replace(run, task=replace(run.task, augment=AugmentConfig(gain_db=6.0)))


def test_noise_of_a_folder_is_used_and_part_of_the_fingerprint(corpus):
    run = narrow(corpus)
    noisy = replace(run, task=replace(run.task, augment=AugmentConfig(noise=str(corpus), noise_fraction=1.0)))
    plain, other = SpeechTask(run, CPU), SpeechTask(noisy, CPU)
    assert plain.fingerprint() != other.fingerprint()
    assert other.fingerprint() == SpeechTask(noisy, CPU).fingerprint()


def test_memory_is_estimated_from_what_autograd_keeps(corpus):
    run = tiny()
    longest = 20.0 / 8
    run = replace(
        run, task=replace(run.task, data=replace(run.task.data, sources=(SourceConfig(path=str(corpus)),),
                                                 max_seconds=longest))
    )  # fmt: skip
    model, kept = run.model.build(), {}
    frames = int(longest * 100) - 1
    features = torch.randn(16, run.model.features.bins, frames)

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits, steps = model(features, torch.full((16,), frames))
        total = logits.log_softmax(-1).sum()
    for parameter in model.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    weights = 16 * sum(p.numel() for p in model.parameters())
    assert training_bytes(run) == pytest.approx(weights + sum(kept.values()), rel=0.2)
    assert total.requires_grad
    assert len(steps) == 16
