"""A second opinion on the hybrid language model, written from the formulas and from nothing else.

It reads a model folder under the names that tensors have on disk and walks one sequence token by token, head by head,
expert by expert, in float64 numpy. It knows no batches, chunks, caches or packed rows, so none of them can hide a
mistake in it. Every point on which implementations are known to differ is a small method of its own: a test can put
the usual mistake there and see that it shows.

Papers: Nemotron-H, section 2 (stack, attention, MLP); Mamba-2 (recurrence); Nemotron 3 Nano and Super (router,
LatentMoE, multi-token prediction).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

Array = np.ndarray
"""Of float64. T tokens, D model width, H heads, P head width, N state width, C channels, K chosen experts."""


@dataclass
class Pass:
    """What one walk over a sequence saw.

    Attributes:
        layers: residual stream after every layer, T × D each.
        hidden: after the final norm, T × D.
        logits: T × vocabulary.
        ssm: per Mamba layer, the state after the last token, H × P × N.
        window: per Mamba layer, the last inputs of the convolution, oldest first, at most taps − 1 of them × C.
        chosen: per expert layer, the experts of every token in falling order of selection score, T × K.
    """

    layers: list[Array] = field(default_factory=list)
    hidden: Array = field(default_factory=lambda: np.zeros(0))
    logits: Array = field(default_factory=lambda: np.zeros(0))
    ssm: dict[int, Array] = field(default_factory=dict)
    window: dict[int, Array] = field(default_factory=dict)
    chosen: dict[int, Array] = field(default_factory=dict)


class ReferenceHybrid:
    """The model of a folder in the public layout, given its config.json fields and its tensors."""

    def __init__(self, fields: Mapping[str, Any], tensors: Mapping[str, Array]) -> None:
        self.fields = fields
        self.tensors = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
        self.eps = fields["layer_norm_epsilon"]

    @classmethod
    def open(cls, folder: Path) -> "ReferenceHybrid":
        return cls(json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors"))

    def run(self, ids: Sequence[int]) -> Pass:
        """The backbone and the head on one sequence."""
        seen = Pass()
        x = self.embed(ids)
        for number, letter in enumerate(self.fields["hybrid_override_pattern"]):
            x = self.layer(f"backbone.layers.{number}.", letter, x, seen, number)
            seen.layers.append(x)
        seen.hidden = np.array([self.rms(token, self.tensors["backbone.norm_f.weight"]) for token in x])
        seen.logits = self.head(seen.hidden)
        return seen

    def embed(self, ids: Sequence[int]) -> Array:
        return self.tensors["backbone.embeddings.weight"][list(ids)]

    def head(self, hidden: Array) -> Array:
        return hidden @ self.tensors["lm_head.weight"].T

    def layer(self, at: str, letter: str, x: Array, seen: Pass, number: int) -> Array:
        """x + mixer(norm(x)); `at` is what the names of the layer's tensors begin with."""
        normed = np.array([self.rms(token, self.tensors[at + "norm.weight"]) for token in x])
        at += "mixer."
        if letter == "M":
            return x + self.mamba(at, normed, seen, number)
        if letter == "*":
            return x + self.attention(at, normed)
        if letter == "-":
            return x + np.array([self.mlp(at, token) for token in normed])
        outputs, seen.chosen[number] = map(np.array, zip(*(self.experts(at, token) for token in normed), strict=True))
        return x + outputs

    def rms(self, x: Array, weight: Array) -> Array:
        return weight * x / np.sqrt(np.mean(x**2) + self.eps)

    # Mamba-2: S <- exp(dt A) S + dt x B^T,  y = S C + D x

    def mamba(self, at: str, x: Array, seen: Pass, number: int) -> Array:
        heads, head_width = self.fields["mamba_num_heads"], self.fields["mamba_head_dim"]
        groups, state_width, taps = self.fields["n_groups"], self.fields["ssm_state_size"], self.fields["conv_kernel"]
        inner, group_state = heads * head_width, groups * state_width
        weight, bias = self.tensors[at + "conv1d.weight"], self.tensors[at + "conv1d.bias"]
        state = np.zeros((heads, head_width, state_width))
        inputs: list[Array] = []
        outputs = []
        for token in x:
            projected = self.tensors[at + "in_proj.weight"] @ token
            z, xbc, dt = np.split(projected, [inner, 2 * inner + 2 * group_state])
            inputs.append(xbc)
            reached = range(min(taps, len(inputs)))
            mixed = silu(bias + sum(self.tap(weight, back) * inputs[-1 - back] for back in reached))
            u = mixed[:inner].reshape(heads, head_width)
            b, c = self.b_and_c(mixed[inner:].reshape(2, groups, state_width))
            dt = self.step_size(dt, self.tensors[at + "dt_bias"])
            decay = np.exp(dt * self.rate(self.tensors[at + "A_log"]))
            y = np.zeros((heads, head_width))
            for head in range(heads):
                group = self.group(head, heads, groups)
                state[head] = decay[head] * state[head] + dt[head] * np.outer(u[head], b[group])
                y[head] = state[head] @ c[group] + self.skip(self.tensors[at + "D"][head]) * u[head]
            y = self.gated_norm(y.ravel(), z, self.tensors[at + "norm.weight"], groups)
            outputs.append(self.tensors[at + "out_proj.weight"] @ y)
        seen.ssm[number], seen.window[number] = state, np.array(inputs[1 - taps :])
        return np.array(outputs)

    def tap(self, weight: Array, back: int) -> Array:
        """What an input `back` tokens ago counts; the last tap meets the present."""
        return weight[:, 0, weight.shape[-1] - 1 - back]

    def b_and_c(self, pair: Array) -> tuple[Array, Array]:
        return pair[0], pair[1]

    def step_size(self, raw: Array, bias: Array) -> Array:
        """Softplus, with neither floor nor cap."""
        return np.logaddexp(0, raw + bias)

    def rate(self, a_log: Array) -> Array:
        return -np.exp(a_log)

    def group(self, head: int, heads: int, groups: int) -> int:
        """Heads share B and C in consecutive runs."""
        return head // (heads // groups)

    def skip(self, d: float) -> float:
        return d

    def gated_norm(self, y: Array, z: Array, weight: Array, groups: int) -> Array:
        """The gate first, then a norm for every group of channels."""
        gated = (y * silu(z)).reshape(groups, -1)
        return weight * (gated / np.sqrt(np.mean(gated**2, axis=1, keepdims=True) + self.eps)).ravel()

    # Attention without positions

    def attention(self, at: str, x: Array) -> Array:
        heads, kv_heads = self.fields["num_attention_heads"], self.fields["num_key_value_heads"]
        q, k, v = (x @ self.tensors[f"{at}{name}_proj.weight"].T for name in "qkv")
        width = q.shape[1] // heads
        outputs = []
        for t in range(len(x)):
            mixed = []
            for head in range(heads):
                kv = self.kv_head(head, heads, kv_heads)
                columns = slice(kv * width, (kv + 1) * width)
                scores = k[: t + 1, columns] @ q[t, head * width : (head + 1) * width] * self.scale(width)
                weights = np.exp(scores - scores.max())
                mixed.append(weights / weights.sum() @ v[: t + 1, columns])
            outputs.append(self.tensors[at + "o_proj.weight"] @ np.concatenate(mixed))
        return np.array(outputs)

    def kv_head(self, head: int, heads: int, kv_heads: int) -> int:
        """Query heads share keys and values in consecutive runs."""
        return head // (heads // kv_heads)

    def scale(self, head_width: int) -> float:
        return float(head_width**-0.5)

    # MLP and experts

    def mlp(self, at: str, x: Array) -> Array:
        return self.tensors[at + "down_proj.weight"] @ self.activation(self.tensors[at + "up_proj.weight"] @ x)

    def activation(self, x: Array) -> Array:
        return np.maximum(x, 0) ** 2

    def experts(self, at: str, x: Array) -> tuple[Array, Array]:
        """One token through its experts: the result, and which experts they were."""
        scores = self.scores(self.tensors[at + "gate.weight"] @ x)
        selection = self.selection(scores, self.tensors[at + "gate.e_score_correction_bias"])
        chosen = self.choose(selection)
        weights = self.expert_weights(scores, selection, chosen)
        latent = "fc1_latent_proj.weight"
        narrow = self.tensors[at + latent] @ x if at + latent in self.tensors else x
        routed = sum(w * self.mlp(f"{at}experts.{e}.", narrow) for e, w in zip(chosen, weights, strict=True))
        if at + latent in self.tensors:
            routed = self.tensors[at + "fc2_latent_proj.weight"] @ routed
        return routed + self.mlp(at + "shared_experts.", x), chosen

    def scores(self, logits: Array) -> Array:
        return 1 / (1 + np.exp(-logits))

    def selection(self, scores: Array, bias: Array) -> Array:
        """What experts are chosen by; the bias is used for nothing else."""
        return scores + bias

    def choose(self, selection: Array) -> Array:
        groups = self.fields["n_group"]
        if groups > 1:
            size = len(selection) // groups
            best = np.argsort([-self.group_score(part) for part in selection.reshape(groups, size)])
            open_groups = best[: self.fields["topk_group"]]
            selection = np.where(np.isin(np.arange(len(selection)) // size, open_groups), selection, -np.inf)
        return np.argsort(-selection)[: self.fields["num_experts_per_tok"]]

    def group_score(self, selection: Array) -> float:
        return float(np.sort(selection)[-2:].sum())

    def expert_weights(self, scores: Array, selection: Array, chosen: Array) -> Array:
        weights = scores[chosen]
        return self.scaling() * (weights / self.total(weights) if self.fields["norm_topk_prob"] else weights)

    def total(self, weights: Array) -> float:
        return float(weights.sum() + 1e-20)

    def scaling(self) -> float:
        return float(self.fields["routed_scaling_factor"])

    # Multi-token prediction

    def look_ahead(self, ids: Sequence[int], depth: int) -> list[Array]:
        """h^0 to h^depth of training: each depth builds on the whole row of the one before."""
        results = [self.before_looking_ahead(self.run(ids))]
        for k in range(1, depth + 1):
            ahead = np.zeros_like(results[0])
            ahead[: len(ids) - k] = self.embed(ids[k:])
            results.append(self.predict(results[-1], ahead))
        return results

    def draft(self, ids: Sequence[int], steps: int) -> list[Array]:
        """Hidden states of drafting: given the true states of all tokens but the last `steps`, each step goes one token
        further on from its own output, while what the block remembers of earlier tokens stays that of depth 1."""
        known = len(ids) - steps
        hidden, results = self.before_looking_ahead(self.run(ids[:known])), []
        for step in range(1, steps + 1):
            hidden = np.concatenate([hidden, *results[-1:]])
            results.append(self.predict(hidden, self.embed(ids[1 : known + step]))[-1:])
        return [result[0] for result in results]

    def before_looking_ahead(self, seen: Pass) -> Array:
        """The block starts from the hidden state after the final norm."""
        return seen.hidden

    def predict(self, hidden: Array, embedded: Array) -> Array:
        """The prediction block on one sequence of hidden states, with the embedding of a later token beside each."""
        enorm, hnorm = self.tensors["mtp.layers.0.enorm.weight"], self.tensors["mtp.layers.0.hnorm.weight"]
        x = np.array(
            [
                self.tensors["mtp.layers.0.eh_proj.weight"] @ self.fuse(self.rms(e, enorm), self.rms(h, hnorm))
                for e, h in zip(embedded, hidden, strict=True)
            ]
        )
        pattern = self.fields["mtp_hybrid_override_pattern"]
        for number, letter in enumerate(pattern):
            x = self.layer(f"mtp.layers.{number}.", letter, x, Pass(), number)
        return self.final_norm(x, self.tensors[f"mtp.layers.{len(pattern) - 1}.final_layernorm.weight"])

    def fuse(self, embedded: Array, hidden: Array) -> Array:
        return np.concatenate([embedded, hidden])

    def final_norm(self, x: Array, weight: Array) -> Array:
        return np.array([self.rms(token, weight) for token in x])


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def nats(logits: Array, targets: Sequence[int]) -> float:
    """Mean cross-entropy of the targets of the first positions; later positions have none."""
    kept = logits[: len(targets)]
    highest = kept.max(1)
    totals = np.log(np.exp(kept - highest[:, None]).sum(1)) + highest
    return float(np.mean(totals - kept[np.arange(len(targets)), list(targets)]))
