"""The hybrid language model: the whole forward pass, top to bottom.

    x = Emb[tokens];   x = x + mixer_i(norm_i(x)) for every letter of the pattern;   logits = norm_f(x) W_lm^T

Paper: Nemotron-H, section 2; Nemotron 3 Super for LatentMoE and MTP. Parameter names are those of the public files.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from seqloom.core.distributed import Axis
from seqloom.nn.attention import Attention
from seqloom.nn.cache import HybridCache
from seqloom.nn.init import initialise
from seqloom.nn.layer import Layer, Memory, Stack
from seqloom.nn.linear import Linear
from seqloom.nn.mamba2 import Mamba2
from seqloom.nn.mlp import Mlp
from seqloom.nn.moe import MoE, Router, Routing
from seqloom.nn.mtp import MtpBlock
from seqloom.nn.mtp_chain import Guesser
from seqloom.nn.norm import RMSNorm
from seqloom.nn.packed import PackedLinear
from seqloom.nn.pattern import parse_pattern
from seqloom.nn.stack_step import few_tokens_of_rows
from seqloom.nn.state_formats import AS_COMPUTED, StateFormats
from seqloom.nn.stores import Room
from seqloom.nn.whole_step import Steps, whole_steps
from seqloom.numerics.place import used_again
from seqloom.numerics.precision import Format, dtype_of
from seqloom.ops.recompute import recomputing
from seqloom.systems.hybrid_lm.config import HybridConfig, LoraConfig

States = list[Memory | None]


class Attached(NamedTuple):
    """What a model with adapters knows about them, to write them down.

    Attributes:
        base: absolute path of the model they sit on.
        public: the `PublicConfig` of that model.
    """

    lora: LoraConfig
    base: str
    public: Any


class Backbone(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        table = torch.empty(config.vocab_size, config.width)  # drawn with all other weights, not twice
        self.embeddings = nn.Embedding.from_pretrained(table, freeze=False)
        self.layers = Stack(make_layer(letter, config) for letter in parse_pattern(config.pattern))
        self.norm_f = RMSNorm(config.width, config.norm_eps)


class HybridLM(nn.Module):
    """A hybrid Mamba-Transformer language model; `model(tokens)` gives logits."""

    entered_by = ("hidden", "look_ahead", "head", "draft")  # methods that callers use in place of `forward`

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.lm_head = Linear(config.width, config.vocab_size)
        self.lm_head.hidden_matrices = ()
        self.mtp = make_mtp(config)
        self.format: Format = "fp32"  # of the residual stream
        self.state_formats: StateFormats = AS_COMPUTED
        self.checkpoint_layers = False  # recompute each layer in the backward pass
        self.context = Axis()  # ranks that each hold a stretch of the tokens of every row
        self.adapter: Attached | None = None  # set where adapters learn in place of the model
        initialise(self, config.init_std, len(self.backbone.layers))

    def forward(
        self, tokens: Int[Tensor, "B T"], documents: Int[Tensor, "B T"] | None = None, states: States | None = None
    ) -> Float[Tensor, "B T V"]:
        """FP32 logits of the next token at every position.

        Args:
            documents: rising document numbers of packed rows, -1 for padding; documents never see each other.
            states: memory of earlier calls, from `new_states`; continued from and updated.
        """
        return self.head(self.hidden(tokens, documents, states)[0])

    def hidden(
        self, tokens: Int[Tensor, "B T"], documents: Int[Tensor, "B T"] | None = None, states: States | None = None
    ) -> tuple[Float[Tensor, "B T D"], list[Routing]]:
        """The last hidden state, after the final norm, and what each expert layer's router did."""
        x = self.embed(tokens)
        if states is not None and documents is None:
            y = few_tokens_of_rows(self.backbone.layers, self.backbone.norm_f, x, states)
            if y is not None:
                return y, []
        routings: list[Routing] = []
        with recomputing():
            for layer, state in zip(self.backbone.layers, states or [None] * len(self.backbone.layers), strict=True):
                if self.checkpoint_layers and torch.is_grad_enabled():
                    x, routing = checkpoint(layer, x, documents, use_reentrant=False)
                else:
                    x, routing = layer(x, documents, state)
                if routing is not None:
                    routings.append(routing)
            return self.backbone.norm_f(x), routings

    def remember(self, tokens: Int[Tensor, "B T"], states: States) -> None:
        """Advance the states as `hidden` does, and compute nothing that they do not need: no layer behind the last that
        remembers, and of an attention layer in that place only keys and values."""
        x = self.embed(tokens)
        last = max((index for index, state in enumerate(states) if state is not None), default=-1)
        for layer, state in zip(self.backbone.layers, states[: last + 1], strict=False):
            if layer is not self.backbone.layers[last]:
                x, _ = layer(x, None, state)
            elif state is not None:
                layer.remember(x, state)

    def embed(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        return F.embedding(tokens, self.backbone.embeddings.weight).to(dtype_of(self.format))

    def head(self, hidden: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        """FP32 logits of a normed hidden state."""
        return self.lm_head(hidden).float()

    def decoder(self, rows: int, tokens: int, states: States) -> Steps | None:
        """`hidden`, `head` and the choice of tokens for rows of an engine in one call, where that can be."""
        body, dtype = self.backbone, dtype_of(self.format)
        return whole_steps(body.embeddings, body.layers, body.norm_f, self.lm_head, dtype, rows, tokens, states)

    def head_of(self, tokens: Int[Tensor, "K"]) -> Linear | PackedLinear | None:
        """A head of some tokens alone, with the weights of now; None of a head that has additions."""
        head: nn.Module = self.lm_head
        if isinstance(head, PackedLinear):
            return PackedLinear(head.weight.rows(tokens), head.format)
        if type(head) is not Linear:
            return None
        part = Linear(self.config.width, len(tokens))
        part.weight, part.format = nn.Parameter(head.weight[tokens], requires_grad=False), head.format
        return part

    def guesser(self, head: Any, tokens: Int[Tensor, "K"]) -> Guesser | None:
        """What guesses several of the tokens of a part of the head in one call, on a CPU."""
        if self.mtp is None or not tokens.is_cpu:
            return None
        return Guesser(self.mtp, self.backbone.embeddings, head, tokens)

    def look_ahead(
        self,
        hidden: Float[Tensor, "B T D"],
        tokens: Int[Tensor, "B T"],
        documents: Int[Tensor, "B T"] | None,
        depth: int,
    ) -> tuple[list[Float[Tensor, "B T D"]], list[Routing]]:
        """Chain the prediction block over a full pass; entry k-1 of the result predicts token t+k+1 at position t.

        Where token t+k lies outside the row or in another document its embedding is zero, as if the row had ended.
        """
        assert self.mtp is not None
        results: list[Tensor] = []
        routings: list[Routing] = []
        for k in range(1, depth + 1):
            ahead, present = self._ahead(tokens, documents, k)
            embedded = self.embed(ahead) * present[..., None]
            with recomputing(), used_again(k - 1):
                hidden, more = self.mtp(hidden, embedded, documents)
            results.append(hidden)
            routings += more
        return results, routings

    def _ahead(
        self, tokens: Int[Tensor, "B T"], documents: Int[Tensor, "B T"] | None, k: int
    ) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
        """The tokens k positions later, and which of them are there, in the same document."""
        tokens = self.context.join(tokens, 1)
        ahead = F.pad(tokens[:, k:], (0, k))
        present = torch.zeros_like(tokens, dtype=torch.bool)
        if documents is not None:
            documents = self.context.join(documents, 1)
        present[:, :-k] = True if documents is None else documents[:, k:] == documents[:, :-k]
        return self.context.mine(ahead, 1), self.context.mine(present, 1)

    def draft(
        self, hidden: Float[Tensor, "B T D"], next_tokens: Int[Tensor, "B T"], states: States
    ) -> Float[Tensor, "B T D"]:
        """One application of the prediction block while generating.

        Args:
            hidden: state of positions t, from the backbone or from the block's previous application.
            next_tokens: the tokens at t+1.
            states: the block's own memory.
        Returns:
            hidden states that predict the tokens at t+2 through `head`.
        """
        assert self.mtp is not None
        return self.mtp(hidden, self.embed(next_tokens), states=states)[0]

    def new_states(self, batch: int) -> States:
        """Empty memory for `batch` rows, one entry per layer, None where a layer remembers nothing."""
        dtype, formats = dtype_of(self.format), self.state_formats
        layers = enumerate(self.backbone.layers)
        return [layer.new_state(batch, dtype, formats, f"layers.{index}") for index, layer in layers]

    def new_cache(self, rows: int, pages: int, page_tokens: int, ahead: int) -> HybridCache:
        """Empty memory of an engine, for so many texts at a time over so many pages.

        Args:
            ahead: most tokens guessed in one call.
        """
        dtype, formats, room = dtype_of(self.format), self.state_formats, Room(rows, pages, page_tokens, ahead)
        layers = enumerate(self.backbone.layers)
        stores = [layer.new_store(room, dtype, formats, f"layers.{index}") for index, layer in layers]
        draft = [] if self.mtp is None else self.mtp.new_stores(room)
        return HybridCache(stores, draft, room, self.backbone.embeddings.weight.device)

    def keep_states(self, formats: StateFormats) -> None:
        """Have memories that are made from now on, those of the prediction block too, stored in these formats."""
        self.state_formats = formats
        if self.mtp is not None:
            self.mtp.state_formats = formats

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    def expert_layers(self) -> list[MoE]:
        """All mixture-of-experts mixers, those of the prediction block last."""
        layers = [*self.backbone.layers, *(self.mtp.layers if self.mtp is not None else [])]
        return [layer.mixer for layer in layers if isinstance(layer.mixer, MoE)]

    def write_folder(self, folder: Path) -> None:
        """Write config.json and weights in the public layout; of a model with adapters only those."""
        if self.adapter is not None:
            from seqloom.systems.hybrid_lm.adapter import write_adapter

            write_adapter(self, folder)
            return
        from seqloom.systems.hybrid_lm.folder import write_model

        write_model(self, folder)

    def read_folder(self, folder: Path) -> None:
        """Load the weights (or adapters) of a folder written for the same configuration."""
        if self.adapter is not None:
            from seqloom.systems.hybrid_lm.adapter import read_trained

            read_trained(self, folder)
            return
        from seqloom.systems.hybrid_lm.folder import read_weights

        read_weights(self, folder)


def make_layer(letter: str, config: HybridConfig) -> Layer:
    """The layer that one letter of the pattern stands for."""
    mixer: Mamba2 | Attention | Mlp | MoE
    if letter == "M":
        m = config.mamba
        assert m is not None
        mixer = Mamba2(
            config.width, m.heads, m.head_width, m.state_width, m.groups, m.conv_width, m.chunk, config.norm_eps
        )
    elif letter == "*":
        a = config.attention
        assert a is not None
        mixer = Attention(config.width, a.heads, a.kv_heads, a.head_width, config.norm_eps, config.stability)
    elif letter == "-":
        assert config.mlp is not None
        mixer = Mlp(config.width, config.mlp.hidden_width)
    else:
        e = config.moe
        assert e is not None
        router = Router(
            config.width, e.experts, e.top_k, e.routed_scaling, e.normalize_top_k, e.expert_groups, e.top_groups
        )
        mixer = MoE(config.width, router, e.expert_width, e.shared_width, e.latent_width, e.bias_rate)
    return Layer(config.width, mixer, config.norm_eps, config.stability)


def make_mtp(config: HybridConfig) -> MtpBlock | None:
    if config.mtp is None:
        return None
    layers = [make_layer(letter, config) for letter in parse_pattern(config.mtp.pattern)]
    return MtpBlock(config.width, layers, config.norm_eps)
