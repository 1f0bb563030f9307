"""The multi-token prediction block against the reference and against a block made of transformers' layers: chained
over a row as in training, and fed its own output as in drafting. The two differ from the second step on, because while
drafting its attention remembers depth-1 entries of earlier tokens; each must be right in its own way.
"""

import functools
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import micro_runs
from reference_hybrid import ReferenceHybrid
from seqloom.data.rows import NO_TARGET
from seqloom.serve.config import Sampling
from seqloom.serve.drafting import MtpDrafter
from seqloom.serve.engine import Engine
from seqloom.serve.request import Request
from seqloom.systems.hybrid_lm.task import TextTask
from tiny_models import Nothing, draft_states, excite, make, tokens

KNOWN = 15
"""Tokens whose true hidden states drafting starts from."""


def close(found, wanted, tolerance=2e-5):
    if not isinstance(wanted, torch.Tensor):
        wanted = torch.from_numpy(np.asarray(wanted)).float()
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=0)


@functools.cache
def model_and_reference():
    model = make("mtp")
    with tempfile.TemporaryDirectory() as folder:
        model.write_folder(Path(folder))
        return model, ReferenceHybrid.open(Path(folder))


@functools.cache
def expected():
    """h^0, h^1, h^2 of both rows."""
    rows = [model_and_reference()[1].look_ahead(row, 2) for row in tokens().tolist()]
    return [torch.from_numpy(np.stack(depth)).float() for depth in zip(*rows, strict=True)]


def look_ahead(model, ids, documents=None):
    return model.look_ahead(model.hidden(ids, documents)[0], ids, documents, 2)[0]


def draft(model, ids, steps):
    """Hidden states of drafting after the first tokens of a row, by the model's own `draft`."""
    hidden, _ = model.hidden(ids[:, :KNOWN])
    states = draft_states(model, len(ids))
    drafted = [model.draft(hidden, ids[:, 1 : KNOWN + 1], states)[:, -1:]]
    for step in range(1, steps):
        drafted.append(model.draft(drafted[-1], ids[:, KNOWN + step : KNOWN + step + 1], states))
    return [state[:, 0] for state in drafted]


@torch.no_grad()
def test_training_depths_equal_the_reference():
    found = look_ahead(model_and_reference()[0], tokens())
    for mine, wanted in zip(found, expected()[1:], strict=True):
        close(mine, wanted)


@torch.no_grad()
def test_training_depths_stop_at_document_borders():
    model, reference = model_and_reference()
    ids = tokens(batch=1)
    packed = look_ahead(model, ids, torch.arange(40).ge(13).int()[None])
    for part in (slice(0, 13), slice(13, 40)):
        alone = reference.look_ahead(ids[0, part].tolist(), 2)[1:]
        for mine, wanted in zip(packed, alone, strict=True):
            close(mine[0, part], wanted)


@torch.no_grad()
def test_draft_steps_equal_the_reference():
    ids = tokens()
    found = draft(model_and_reference()[0], ids, 3)
    rows = [model_and_reference()[1].draft(row[: KNOWN + 3], 3) for row in ids.tolist()]
    for mine, wanted in zip(found, zip(*rows, strict=True), strict=True):
        close(mine, wanted)
    _, depth_1, depth_2 = expected()
    close(found[0], depth_1[:, KNOWN - 1])
    second = depth_2[:, KNOWN - 1]
    assert (found[1] - second).norm() > 0.1 * second.norm()


MISTAKES = {
    "hidden state first": {"fuse": lambda self, embedded, hidden: np.concatenate([hidden, embedded])},
    "hidden state before the final norm": {"before_looking_ahead": lambda self, seen: seen.layers[-1]},
    "no norm at the end": {"final_norm": lambda self, x, weight: x},
    "the head's norm at the end": {
        "final_norm": lambda self, x, weight: ReferenceHybrid.final_norm(
            self, x, self.tensors["backbone.norm_f.weight"]
        )
    },
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_usual_mistakes_show(mistake):
    mistaken = type("Mistaken", (ReferenceHybrid,), MISTAKES[mistake])
    reference = model_and_reference()[1]
    _, first, second = mistaken(reference.fields, reference.tensors).look_ahead(tokens()[0].tolist(), 2)
    for found, wanted in zip((first, second), expected()[1:], strict=True):
        assert np.abs(found - wanted[0].numpy()).max() > 1e-2


@torch.no_grad()
def test_training_and_drafting_equal_a_block_of_library_layers(tmp_path):
    pytest.importorskip("transformers")
    from transformers import DynamicCache

    from transformers_oracle import PredictionBlock

    model, ids = model_and_reference()[0], tokens()
    model.write_folder(tmp_path)
    block = PredictionBlock.open(tmp_path)
    hidden, _ = model.hidden(ids)
    trained = block.look_ahead(model.embed, hidden, ids, 2)
    for mine, wanted in zip(look_ahead(model, ids), trained, strict=True):
        close(mine, wanted)

    cache = DynamicCache(config=block.config)
    drafted = [block(hidden[:, :KNOWN], model.embed(ids[:, 1 : KNOWN + 1]), cache)[:, -1:]]
    for step in (1, 2):
        drafted.append(block(drafted[-1], model.embed(ids[:, KNOWN + step : KNOWN + step + 1]), cache))
    for mine, wanted in zip(draft(model, ids, 3), drafted, strict=True):
        close(mine, wanted[:, 0])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = micro_runs.narrow(micro_runs.write_texts(tmp_path_factory.mktemp("texts") / "corpus"))()
    return replace(run, model=replace(run.model, moe=replace(run.model.moe, balance_weight=0.0)))


@torch.no_grad()
def test_the_loss_of_a_packed_step_equals_the_reference(run, tmp_path):
    """CE_main + λ/D Σ mean CE_k, each document walked alone."""
    torch.manual_seed(0)
    model = excite(run.model.build()).eval()
    model.write_folder(tmp_path)
    reference = ReferenceHybrid.open(tmp_path)
    task = TextTask(run, torch.device("cpu"))
    (micro,) = task.next_batch(model, 0)
    sums, counts, documents_seen = np.zeros(3), np.zeros(3), 0
    for tokens_, targets, documents in zip(*(tensor.tolist() for tensor in micro.rows), strict=True):
        for document in sorted(set(documents) - {-1}):
            where = [place for place, number in enumerate(documents) if number == document]
            depths = reference.look_ahead([tokens_[place] for place in where], 2)
            for k, hidden in enumerate(depths):
                logits = reference.head(hidden)
                for t, row in enumerate(logits[: len(where) - k]):
                    if (target := targets[where[t + k]]) != NO_TARGET:
                        sums[k] += np.log(np.exp(row - row.max()).sum()) + row.max() - row[target]
                        counts[k] += 1
            documents_seen += 1
    assert documents_seen > len(micro.rows.tokens)
    means = sums / counts
    loss = task.loss(model, micro)
    assert loss.units == counts[0]
    assert float(loss.total) / loss.units == pytest.approx(means[0] + run.model.mtp.loss_weight / 2 * means[1:].sum())


@torch.inference_mode()
@pytest.mark.parametrize("right", [0, 1, 2, 4])
def test_what_is_remembered_after_any_number_of_right_guesses(right, monkeypatch):
    """The model goes on from there as from one pass over the text so far, and the block as from true states."""
    model, _ = model_and_reference()
    engine = Engine((model, Nothing()))
    prompt, greedy = tokens(1, 17)[0].tolist(), Sampling(max_tokens=20, temperature=0)
    (plain,) = engine.generate([prompt], greedy)

    def guess(request, logits, ahead):
        token = plain.token_ids[len(request.tokens) + ahead]
        return token if ahead < right else token ^ 1

    monkeypatch.setattr(Request, "guess", guess)
    monkeypatch.setattr(MtpDrafter, "_in_one_call", lambda *_: None)  # which asks nobody for guesses
    request = engine.submit(prompt, greedy, 4)
    for _ in range(3):
        engine.step()
    seen, fresh, block = torch.tensor([request.ids]), model.new_states(1), draft_states(model, 1)
    assert seen.shape[1] == 17 + 3 * (right + 1)
    engine._scheduler._drafter._catch_up(0, [request])
    hidden, _ = model.hidden(seen[:, :-1], states=fresh)
    close(request.followed.ahead, model.draft(hidden, seen[:, 1:], block)[0, -1])
    cache = engine._scheduler.cache
    assert cache.reserve(0, 2)
    hidden, _ = model.hidden(seen[:, -1:], states=cache.states(0, 1, 1))
    wanted, _ = model.hidden(seen[:, -1:], states=fresh)
    close(hidden, wanted)
    newest = torch.tensor([plain.token_ids[len(request.tokens) :][:1]])
    close(model.draft(hidden, newest, cache.draft_states(0, 1, 1)), model.draft(wanted, newest, block))
