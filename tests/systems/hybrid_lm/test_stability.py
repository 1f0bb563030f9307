"""Stability methods in the whole: training, checkpoints, generation."""

from dataclasses import replace

import pytest
import torch

import micro_runs
import seqloom
from seqloom.core.logs import read_metrics
from seqloom.nn.stability import METHODS, Stability
from seqloom.systems.hybrid_lm.budget import budget
from seqloom.systems.hybrid_lm.model import HybridLM
from seqloom.train.interrupt import Interrupted
from seqloom.train.observer import Observer
from tiny_models import VARIANTS, make, tokens

EVERYTHING = Stability(
    qk_norm=True, v_norm="width", pre_norm=False, soft_cap=20.0, inverse_temperature=0.8, soft_clip=(-0.01, 1.01),
    output_norm=True, layer_scale=0.1, sigma_reparam=True, z_loss=1e-2, norm="rms", per_head=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three steps on a model with every layer kind and every method."""
    texts = micro_runs.write_texts(tmp_path_factory.mktemp("texts") / "corpus")
    run = micro_runs.narrow(texts)()
    return replace(run, model=replace(run.model, stability=EVERYTHING))


class StopAt(Observer):
    """As if Ctrl-C came during a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step(self, metrics: dict[str, float]) -> None:
        import signal

        if metrics["step"] == self._step:
            signal.raise_signal(signal.SIGINT)


def test_an_interrupted_training_goes_on_bit_for_bit(run, tmp_path):
    straight = seqloom.train(run, tmp_path / "straight")
    with pytest.raises(Interrupted):
        seqloom.train(run, tmp_path / "broken", StopAt(2))
    resumed = seqloom.train(run, tmp_path / "broken")
    for name in ("model.safetensors", "config.json"):
        assert (straight.path / name).read_bytes() == (resumed.path / name).read_bytes()


@pytest.mark.parametrize("change", [{"activation_checkpointing": True}, {"micro_rows": 2}])
def test_recomputing_and_accumulating_see_one_matrix_a_step(run, tmp_path, change):
    """The singular vectors move once a step, whatever happens within it."""
    plain = seqloom.train(run, tmp_path / "plain")
    part = "task" if "micro_rows" in change else "train"
    other = seqloom.train(replace(run, **{part: replace(getattr(run, part), **change)}), tmp_path / "other")
    losses = [[r["loss"] for r in read_metrics(place.metrics_path) if r["kind"] == "train"] for place in (plain, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_reported_loss_is_without_z_loss(run, tmp_path):
    place = seqloom.train(replace(run, train=replace(run.train, steps=1)), tmp_path / "run")
    train, valid = ([r for r in read_metrics(place.metrics_path) if r["kind"] == kind] for kind in ("train", "valid"))
    normalizer = train[0]["loss"]  # of nearly even logits: logsumexp = log V = loss
    rest = sum(0.3 / 2 * train[0][f"mtp_{depth}_loss"] for depth in (1, 2)) + 1e-4 * 3 * train[0]["balance_loss"]
    z_loss = train[0]["objective"] - train[0]["loss"] - rest
    assert z_loss == pytest.approx(1e-2 * normalizer**2, rel=0.05)
    assert valid[0]["loss"] < train[0]["loss"] + 0.1


@pytest.mark.parametrize("variant", ["dense", "mtp"])
def test_generation_in_pieces_equals_the_full_pass(variant):
    model = make(variant, stability=EVERYTHING)
    ids = tokens()
    full, states = model(ids), model.new_states(2)
    pieces = [model(part, None, states) for part in ids.split([17, 1, 1, 21], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), full, rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize("name", [*METHODS, "everything"])
def test_the_budget_counts_every_parameter(name):
    config = replace(VARIANTS["mtp"], stability=METHODS.get(name, EVERYTHING))
    model = HybridLM(config)
    counted = sum(p.numel() for p in model.parameters())
    counted += sum(b.numel() for key, b in model.named_buffers() if key.endswith("correction_bias"))
    cost = budget(config)
    assert counted == cost.parameters + cost.mtp_parameters
