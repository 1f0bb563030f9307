"""The attention-augmented agent: from frames to a policy, top to bottom.

    O_t, s_t = ConvLSTM(conv(X_t), s_{t-1})                     vision: features of every position, with a memory
    K, V = split O_t;   K' = [K, S], V' = [V, S]                S: fixed spatial basis
    q^n_t = MLP(h_{t-1})                                        queries from the policy's memory alone
    a^n_t = Σ softmax(q^n · K') V'                              answers: all that the policy sees of the image
    h_t = LSTM(MLP[a_t, q_t, r_{t-1}, onehot(a_{t-1})], h_{t-1})
    π_t = softmax(W_π h_t),   V_t = w_v h_t

Paper: "Towards interpretable reinforcement learning using attention augmented agents" (arXiv 1906.02500), section 2.
"""

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from seqloom.nn.conv_lstm import ConvLSTM
from seqloom.nn.glimpse import Glimpse, GlimpseAttention
from seqloom.numerics.precision import Format, dtype_of
from seqloom.rl.unroll import Seen
from seqloom.systems.attention_agent.config import AgentConfig, ConvConfig


class AgentState(NamedTuple):
    """What an agent remembers between steps; parts that it does not have are zero wide."""

    vision_h: Float[Tensor, "B C Y X"]
    vision_c: Float[Tensor, "B C Y X"]
    core_h: Float[Tensor, "B H"]
    core_c: Float[Tensor, "B H"]

    def reset(self, rows: Tensor) -> "AgentState":
        """The same with these rows (B, true where) as before an episode."""
        keep = (~rows).float()
        return AgentState(*(part * keep.view(-1, *[1] * (part.ndim - 1)) for part in self))


class AgentOutput(NamedTuple):
    """
    Attributes:
        state: after the last step.
        glimpses: where each query looked at every step, T B N ...; None unless asked for, or without attention.
    """

    logits: Float[Tensor, "T B A"]
    values: Float[Tensor, "T B"]
    state: AgentState
    glimpses: Glimpse | None


class SameConv(nn.Module):
    """A convolution whose output has ⌈size / stride⌉ rows and columns, before a ReLU."""

    def __init__(self, in_channels: int, config: ConvConfig) -> None:
        super().__init__()
        self.config = config
        self.convolution = nn.Conv2d(in_channels, config.channels, config.kernel, config.stride)
        nn.init.kaiming_normal_(self.convolution.weight, nonlinearity="relu")  # or little of a sparse image is left
        self.format: Format = "fp32"

    def forward(self, x: Float[Tensor, "N I Y X"]) -> Float[Tensor, "N O y x"]:
        layer, dtype = self.convolution, dtype_of(self.format)
        assert layer.bias is not None
        sides = [same_padding(size, self.config) for size in (x.shape[-1], x.shape[-2])]
        x = F.pad(x.to(dtype), [side for pair in sides for side in pair])
        return F.conv2d(x, layer.weight.to(dtype), layer.bias.to(dtype), self.config.stride).relu().float()


def same_padding(size: int, config: ConvConfig) -> tuple[int, int]:
    """Zeros before and behind; the odd one goes behind."""
    total = max(0, (-(-size // config.stride) - 1) * config.stride + config.kernel - size)
    return total // 2, total - total // 2


class AttentionAgent(nn.Module):
    """An agent of any of the three cores; `agent(seen, state)` runs over an unroll."""

    def __init__(self, config: AgentConfig) -> None:
        super().__init__()
        self.config = config
        channels = [3, *(convolution.channels for convolution in config.convolutions)]
        self.convolutions = nn.Sequential(*map(SameConv, channels, config.convolutions))
        if config.core == "attention":
            code = config.code_channels
            key, value = config.key_channels + code, config.vision_channels - config.key_channels + code
            self.vision = ConvLSTM(channels[-1], config.vision_channels)
            self.attention = GlimpseAttention(
                *config.image,
                frequencies=config.frequencies,
                basis=config.basis,
                weighting=config.weighting,
                scale_logits=config.scale_logits,
            )
            if config.query_kind == "top_down":
                self.query = mlp(config.lstm_width, config.query_width, config.queries * key)
                last = self.query[-1]
                assert isinstance(last, nn.Linear)
                _spread_out(last.bias, config)
            else:
                self.fixed_queries = nn.Parameter(torch.randn(config.queries, key) / key**0.5)
            width = config.queries * (value + key)
        else:
            width = channels[-1] * config.image[0] * config.image[1]
        self.core = mlp(width + 1 + config.actions, *config.core_widths)
        width = config.core_widths[-1]
        if config.core != "feed_forward":
            self.lstm = nn.LSTMCell(width, config.lstm_width)
            width = config.lstm_width
        self.policy = nn.Linear(width, config.actions)
        self.value = nn.Linear(width, 1)

    def forward(self, seen: Seen, state: AgentState, look: bool = False) -> AgentOutput:
        """Policy and values over an unroll; the state is forgotten where an episode begins.

        Args:
            look: also return where the queries looked.
        """
        features = self._features(seen)
        before = self._before(seen)
        glimpses: list[Glimpse] = []
        if self.config.core == "attention":
            features, vision = self.vision(features, seen.begins, (state.vision_h, state.vision_c))
            state = state._replace(vision_h=vision[0], vision_c=vision[1])
            hidden, state = self._attend(features, before, seen, state, glimpses)
        else:
            inner = self.core(torch.cat([features.flatten(2), before], dim=-1))
            hidden = inner.relu()
            if self.config.core == "lstm":
                hidden, state = self._remember(inner, seen, state)
        stacked = Glimpse(*map(torch.stack, zip(*glimpses, strict=True))) if look and glimpses else None
        return AgentOutput(self.policy(hidden), self.value(hidden).squeeze(-1), state, stacked)

    def initial_state(self, batch: int) -> dict[str, Tensor]:
        """The `AgentState` before an episode, by name."""
        config, device = self.config, self.policy.weight.device
        channels = config.vision_channels if config.core == "attention" else 0
        width = 0 if config.core == "feed_forward" else config.lstm_width
        shapes = 2 * [(batch, channels, *config.image)] + 2 * [(batch, width)]
        return {name: torch.zeros(shape, device=device) for name, shape in zip(AgentState._fields, shapes, strict=True)}

    @torch.no_grad()
    def act(self, seen: Seen, state: dict[str, Tensor]) -> tuple[Float[Tensor, "B A"], dict[str, Tensor]]:
        """One step (T = 1): logits, and the state after it."""
        output = self(seen, AgentState(**state))
        return output.logits[0], output.state._asdict()

    def write_folder(self, folder: Path) -> None:
        """Write config.json and model.safetensors."""
        from seqloom.systems.attention_agent.folder import write_model

        write_model(self, folder)

    def read_folder(self, folder: Path) -> None:
        """Load the weights of a folder written for the same configuration."""
        from seqloom.systems.attention_agent.folder import read_weights

        read_weights(self, folder)

    def _features(self, seen: Seen) -> Float[Tensor, "T B C Y X"]:
        """Convolutions of all frames at once; their axes Y X C are moved, never reinterpreted."""
        pixels = seen.frames.flatten(0, 1).permute(0, 3, 1, 2).float() / 255
        features: Tensor = self.convolutions(pixels.contiguous())
        return features.unflatten(0, seen.frames.shape[:2])

    def _before(self, seen: Seen) -> Float[Tensor, "T B P"]:
        """Reward and action of the step before; zeros where there was none."""
        action = F.one_hot(seen.actions, self.config.actions)
        before = torch.cat([seen.rewards.clamp(-1, 1)[..., None], action.float()], dim=-1)
        return before * (~seen.begins)[..., None]

    def _attend(
        self,
        features: Float[Tensor, "T B C Y X"],
        before: Float[Tensor, "T B P"],
        seen: Seen,
        state: AgentState,
        glimpses: list[Glimpse],
    ) -> tuple[Float[Tensor, "T B H"], AgentState]:
        """Look, think, and look again with the next step's queries."""
        key = self.config.key_channels
        keys, values = features.permute(0, 1, 3, 4, 2).contiguous().split([key, features.shape[2] - key], dim=-1)
        outputs = []
        for t, begins in enumerate(seen.begins):
            h, c = state.core_h * ~begins[:, None], state.core_c * ~begins[:, None]
            queries = self._queries(h)
            glimpse = self.attention(queries, keys[t], values[t])
            core = self.core(torch.cat([glimpse.answers.flatten(1), queries.flatten(1), before[t]], dim=-1))
            h, c = self.lstm(core, (h, c))
            state = state._replace(core_h=h, core_c=c)
            outputs.append(h)
            glimpses.append(glimpse)
        return torch.stack(outputs), state

    def _queries(self, h: Float[Tensor, "B H"]) -> Float[Tensor, "B N K"]:
        if self.config.query_kind == "fixed":
            return self.fixed_queries.expand(len(h), -1, -1)
        queries: Tensor = self.query(h)
        return queries.unflatten(-1, (self.config.queries, -1))

    def _remember(
        self, inner: Float[Tensor, "T B I"], seen: Seen, state: AgentState
    ) -> tuple[Float[Tensor, "T B H"], AgentState]:
        """The LSTM over the unroll, without attention."""
        outputs = []
        for step, begins in zip(inner, seen.begins, strict=True):
            h, c = self.lstm(step, (state.core_h * ~begins[:, None], state.core_c * ~begins[:, None]))
            state = state._replace(core_h=h, core_c=c)
            outputs.append(h)
        return torch.stack(outputs), state


@torch.no_grad()
def _spread_out(bias: Float[Tensor, "NQ"], config: AgentConfig) -> None:
    """Let fresh queries look for different contents and places.

    Queries near zero see the mean of the whole image and learn nothing for long. Both parts of the logits begin with a
    deviation of about 1.2 over positions: contents are some tenths large, the code of a place one half on average.
    """
    what, where = bias.view(config.queries, -1).split([config.key_channels, config.code_channels], dim=-1)
    what.normal_(std=8.5 / config.key_channels**0.5)
    where.normal_(std=2.4 / max(1, config.code_channels) ** 0.5)


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLUs between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.ReLU(), nn.Linear(before, after)]
    return nn.Sequential(*layers[1:])
