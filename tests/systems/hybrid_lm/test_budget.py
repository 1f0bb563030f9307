"""The counting formulas against every published total, and against the modules themselves."""

import dataclasses

import pytest
import torch

from seqloom.systems.hybrid_lm.budget import budget
from seqloom.systems.hybrid_lm.config import AttentionConfig, HybridConfig, MambaConfig, MlpConfig, MoeConfig, MtpConfig
from seqloom.systems.hybrid_lm.model import HybridLM
from tiny_models import VARIANTS

VOCABULARY = 131072
H8 = "M-M-M-M*-" + "M-M-M-M-M*-" * 3 + "M-M-M-M-M-"
NANO2_9B = "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-"
NANO3 = "MEMEM*E" * 5 + "MEMEMEM*E" + "MEMEMEME"
SUPER = "MEMEMEM*E" * 3 + "MEMEMEMEM*E" * 4 + "MEMEMEM*E" + "MEMEMEME"
ULTRA = "MEMEME" + ("M*EMEME" + "M*EMEMEME" + "M*EMEMEME") * 4 + "ME"


def dense(pattern, width, heads, hidden, mamba_heads, head_width):
    return HybridConfig(
        pattern=pattern,
        vocab_size=VOCABULARY,
        width=width,
        mamba=MambaConfig(heads=mamba_heads, head_width=head_width, state_width=128),
        attention=AttentionConfig(heads=heads, kv_heads=8),
        mlp=MlpConfig(hidden_width=hidden),
    )


def sparse(pattern, width, heads, mamba_heads, experts, top_k, expert_width, shared_width, latent_width=None, mtp=None):
    return HybridConfig(
        pattern=pattern,
        vocab_size=VOCABULARY,
        width=width,
        mamba=MambaConfig(heads=mamba_heads, head_width=64, state_width=128),
        attention=AttentionConfig(heads=heads, kv_heads=2),
        moe=MoeConfig(
            experts=experts,
            top_k=top_k,
            expert_width=expert_width,
            shared_width=shared_width,
            latent_width=latent_width,
        ),
        mtp=mtp,
    )


# parameters, prediction block, key-value bytes a token, FP32 SSM MiB (Nemotron-H Table 1; Nano 2; Nemotron 3 reports)
PUBLISHED = {
    "H-8B": (dense(H8, 4096, 32, 21504, 128, 64), 8_100_852_736, 0, 16_384, 96.0),
    "Nano-2 9B": (dense(NANO2_9B, 4480, 40, 15680, 128, 80), 8_888_227_328, 0, 16_384, 135.0),
    "3 Nano 30B": (sparse(NANO3, 2688, 32, 64, 128, 6, 1856, 3712), 31_577_940_288, 0, 6_144, 46.0),
    "3 Super": (
        sparse(SUPER, 4096, 32, 128, 512, 22, 2688, 5376, 1024, MtpConfig()),
        120_668_707_840,
        2_942_325_248,
        8_192,
        160.0,
    ),
    "3 Ultra": (
        sparse(ULTRA, 8192, 64, 256, 512, 22, 5120, 10240, 2048, MtpConfig()),
        549_308_993_536,
        11_215_610_368,
        12_288,
        384.0,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_totals_are_exact(name):
    config, parameters, mtp, kv_bytes, ssm_mib = PUBLISHED[name]
    cost = budget(config)
    assert (cost.parameters, cost.mtp_parameters, cost.kv_bytes_per_token) == (parameters, mtp, kv_bytes)
    mamba = config.mamba
    layers = config.pattern.count("M")
    assert layers * mamba.heads * mamba.head_width * mamba.state_width * 4 / 2**20 == pytest.approx(ssm_mib, abs=0.01)
    channels = mamba.heads * mamba.head_width + 2 * mamba.groups * mamba.state_width
    assert cost.state_bytes == ssm_mib * 2**20 + layers * channels * 3 * 2


def test_super_activates_what_its_report_says():
    cost = budget(PUBLISHED["3 Super"][0])
    assert round(cost.active / 1e9, 3) == 11.696
    assert round(cost.active_with_head / 1e9, 3) == 12.233


@pytest.mark.parametrize("name", VARIANTS)
def test_formula_equals_the_module(name):
    config = VARIANTS[name]
    with torch.device("meta"):
        model = HybridLM(config)
    counted = sum(tensor.numel() for tensor in model.state_dict().values())
    cost = budget(config)
    assert counted == cost.parameters + cost.mtp_parameters


def test_activation_checkpointing_and_micro_batches_lower_the_training_estimate():
    import seqloom
    from seqloom.systems.hybrid_lm.budget import training_bytes

    run = seqloom.recipe("hybrid_lm/tiny")
    small = dataclasses.replace(run, task=dataclasses.replace(run.task, micro_rows=1))
    recompute = dataclasses.replace(run, train=dataclasses.replace(run.train, activation_checkpointing=True))
    assert training_bytes(small) < training_bytes(run)
    assert training_bytes(recompute) < training_bytes(run)
