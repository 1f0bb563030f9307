"""GGUF files: every number arrives under the name that llama.cpp asks for, read back with the format's own package;
and, where llama.cpp is installed, it writes the same text."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from micro_runs import write_texts
from seqloom.core.errors import CheckpointError, ConfigError, DataError
from seqloom.data.tokenizer import TextTokenizer, train_tokenizer
from seqloom.nn.stability import Stability
from seqloom.serve.config import Sampling
from seqloom.serve.engine import Engine
from seqloom.systems.hybrid_lm.config import MlpConfig
from seqloom.systems.hybrid_lm.gguf import write_gguf
from seqloom.systems.hybrid_lm.model import HybridLM
from tiny_models import VARIANTS, make

gguf = pytest.importorskip("gguf")
VOCABULARY = 328  # more ids than the tokenizer has
MIXED = {
    "mixed": ("mtp", {"pattern": "M-*EM-"}),
    "mixed, narrow MLP": ("moe", {"pattern": "ME*-", "mlp": MlpConfig(hidden_width=40)}),
}
"""MLP layers beside experts, wider or narrower than the shared ones."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    texts = write_texts(tmp_path_factory.mktemp("gguf") / "texts")
    return train_tokenizer((path.read_text() for path in sorted(texts.iterdir())), 320)


def folder_of(name: str, tokenizer: TextTokenizer, folder: Path) -> tuple[HybridLM, Path]:
    variant, changes = MIXED.get(name, (name, {}))
    model = make(variant, vocab_size=VOCABULARY, **changes)
    folder.mkdir()
    model.write_folder(folder)
    tokenizer.save(folder)
    return model, folder


@pytest.mark.parametrize("name", [*VARIANTS])
def test_every_number_arrives_under_its_name(name: str, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    model, folder = folder_of(name, tokenizer, tmp_path / "model")
    written = write_gguf(folder, tmp_path / "model.gguf")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    found = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    assert len(found) == written.tensors
    assert sum(array.size for array in found.values()) == sum(t.numel() for t in model.state_dict().values())
    sparse = "E" in model.config.pattern
    assert written.architecture == ("nemotron_h_moe" if sparse else "nemotron_h")
    state = model.state_dict()
    for number, letter in enumerate(model.config.pattern):
        inside, there = f"backbone.layers.{number}.mixer.", f"blk.{number}."
        assert np.array_equal(found[there + "attn_norm.weight"], state[f"backbone.layers.{number}.norm.weight"])
        if letter == "M":
            assert np.array_equal(found[there + "ssm_a"], -state[inside + "A_log"].exp()[:, None])
            assert np.array_equal(found[there + "ssm_conv1d.weight"], state[inside + "conv1d.weight"][:, 0])
            assert found[there + "ssm_norm.weight"].shape == (
                model.config.mamba.groups,
                128 // model.config.mamba.groups,
            )
        elif letter == "*":
            assert np.array_equal(found[there + "attn_k.weight"], state[inside + "k_proj.weight"])
        elif letter == "-":
            assert np.array_equal(found[there + "ffn_down.weight"], state[inside + "down_proj.weight"])
        else:
            assert np.array_equal(found[there + "ffn_up_exps.weight"], state[inside + "experts.up_proj"])
            assert np.array_equal(found[there + "exp_probs_b.bias"], state[inside + "gate.e_score_correction_bias"])
    keys = {key: field.contents() for key, field in reader.fields.items()}
    of = written.architecture
    widths, heads = keys[f"{of}.feed_forward_length"], keys[f"{of}.attention.head_count_kv"]
    kinds = ["*" if h else "M" if not w else "E" if sparse else "-" for w, h in zip(widths, heads, strict=True)]
    assert "".join(kinds[: len(model.config.pattern)]) == model.config.pattern
    assert keys.get(f"{of}.nextn_predict_layers") == (1 if name == "mtp" else None)
    assert keys.get(f"{of}.expert_group_count") == (4 if name == "grouped" else None)


def test_the_tokenizer_goes_along(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    _, folder = folder_of("dense", tokenizer, tmp_path / "model")
    written = write_gguf(folder, tmp_path / "model.gguf")
    keys = {key: field.contents() for key, field in gguf.GGUFReader(tmp_path / "model.gguf").fields.items()}
    pieces = keys["tokenizer.ggml.tokens"]
    assert len(pieces) == VOCABULARY
    assert pieces[:3] == ["<pad>", "<s>", "</s>"]
    assert pieces[-1] == f"[PAD{VOCABULARY - 1}]"
    assert "".join(pieces[token] for token in tokenizer.encode("def total")) == "defĠtotal"
    assert [keys[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding")] == [1, 2, 0]
    assert any("cuts text into words" in remark for remark in written.remarks)


def test_matrices_are_rounded_and_what_steers_is_not(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    model, folder = folder_of("moe", tokenizer, tmp_path / "model")
    matrix = model.state_dict()["backbone.layers.0.mixer.in_proj.weight"]
    for format, kind, error in (("bf16", "BF16", 2**-8), ("q8_0", "Q8_0", 1 / 127), ("q4_0", "Q4_0", 1 / 7)):
        write_gguf(folder, tmp_path / f"{format}.gguf", format=format)
        tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / f"{format}.gguf").tensors}
        into = tensors["blk.0.ssm_in.weight"]
        assert into.tensor_type.name == kind
        there = torch.from_numpy(gguf.dequantize(into.data, into.tensor_type).copy())
        assert 0 < (there - matrix).abs().max() <= error * matrix.abs().max()
        for name in ("ssm_a", "ssm_conv1d.weight", "ssm_dt.bias", "attn_norm.weight"):
            assert tensors[f"blk.0.{name}"].tensor_type.name == "F32"
        assert {tensors[f"blk.1.{name}"].tensor_type.name for name in ("ffn_gate_inp.weight", "exp_probs_b.bias")} == {
            "F32"
        }
        assert tensors["blk.1.ffn_down_shexp.weight"].tensor_type.name == "BF16"  # rows of 48 numbers


def test_what_llama_cpp_does_not_know_is_refused(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    known, unknown = VARIANTS["dense"], tmp_path / "unknown.gguf"
    for number, (config, told) in enumerate(
        [
            (replace(known, pattern="*-*-"), "asks for Mamba layers"),
            (replace(known, stability=Stability(qk_norm=True)), "stability methods"),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        config.build().write_folder(folder)
        with pytest.raises(ConfigError, match=told):
            write_gguf(folder, unknown)
    folder = tmp_path / "bare"
    folder.mkdir()
    known.build().write_folder(folder)
    with pytest.raises(DataError, match="no tokenizer here"):
        write_gguf(folder, unknown)
    assert not [path for path in tmp_path.iterdir() if "gguf" in path.name]  # nothing is left half written
    unknown.touch()
    with pytest.raises(CheckpointError, match="exists"):
        write_gguf(folder, unknown)


@pytest.mark.parametrize("name", ["dense", "one_group", "wide_attention", "moe", "latent", "grouped", "mtp", *MIXED])
def test_llama_cpp_writes_the_same_text(name: str, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    """Greedy, from the same token ids: FP32 weights and states on both sides."""
    llama_cpp = pytest.importorskip("llama_cpp")
    _, folder = folder_of(name, tokenizer, tmp_path / "model")
    write_gguf(folder, tmp_path / "model.gguf")
    prompt = [1, *tokenizer.encode("def compute_7(total):\n    alpha = beta")]
    (ours,) = Engine(folder).generate([prompt], Sampling(temperature=0, max_tokens=24))
    model = llama_cpp.Llama(
        str(tmp_path / "model.gguf"), n_ctx=256, n_threads=1, verbose=False,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, flash_attn=False,
    )  # fmt: skip
    stream = model.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0)
    theirs = [token for token, _ in zip(stream, ours.token_ids, strict=False)]
    assert len(theirs) > 2
    assert theirs == ours.token_ids
