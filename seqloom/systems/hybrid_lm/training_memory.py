"""Peak of what tensors take while a hybrid model trains, counted from shapes alone.

    always         weights W, optimizer state S (and a copy of both where checkpoints are written in the background)
    forward end    + what autograd keeps + the head's gradients + one chunk of logits (+ gradients G of earlier
                   micro-batches)
    optimizer      + G + the temporaries of Muon's largest batch of matrices
    peak           the larger of the two

What autograd keeps is what its saved tensors hold, each memory once, per token and layer with its input norm (h width,
d inner width, c conv channels, i latent width; w bytes a number, 4 for what is computed in FP32 whatever the format):

    M : 4(1 + groups + dN/Q) + w(h + rows + d)              * : 4(1 + heads) + w(h + K(3 heads + 2 kv) + row length)
    - : 4 + w(h + f)                                        E : 4(1 + E + 5k) + w(h + s + 2i + kf)

What norms, convolutions and squared ReLUs give is made again in the backward pass where it is large, and kept where it
is small (see ops/recompute.py). A layer that is recomputed as a whole has all of it while it goes back. In a narrow
format FP32 copies of dt and of the router's input come on top, and the experts' matrices are kept once more in that
format. A row's attention mask costs its length per token. The process itself and what an allocator holds beyond what it
is asked for are not in here (see `core/devices.py`).
"""

from collections import defaultdict
from collections.abc import Iterator

from seqloom.nn.pattern import parse_pattern
from seqloom.systems.hybrid_lm.budget import budget
from seqloom.systems.hybrid_lm.config import HybridConfig, Run

LOGITS = 2**21  # of one chunk, unless that makes fewer tokens than the next number; see ops/cross_entropy.py
LOGITS_TOKENS = 128
SMALL = 4 << 20  # bytes up to which a result is kept; see ops/recompute.py
MUON_COPIES = 3  # of its largest batch: updates, their stack, and what comes of it; see muon.py


def training_bytes(run: Run) -> int:
    """Estimated peak of all tensors of a training."""
    cost, depth, wide = budget(run.model), _depth(run), _wide(run)
    total = cost.parameters + cost.mtp_parameters
    trained, stored = total, 4
    if run.adapter is not None:
        from seqloom.systems.hybrid_lm.adapter_targets import choose_targets
        from seqloom.systems.hybrid_lm.fine_tune import stored_width

        trained, stored = choose_targets(run.model, run.adapter).parameters, stored_width(run)
    weights = 4 * trained + (stored * total if run.adapter is not None else 0) + _kept_in_few_bits(run, total)
    gradients, muon = 4 * trained, _muon_matrices(run)
    state = 8 * (trained - sum(muon.values())) + 4 * sum(muon.values())
    always = weights + state + (4 * trained + state if run.train.async_save else 0)

    rows = run.task.micro_rows or run.task.batch_rows
    tokens, head = rows * run.task.sequence_length, run.model.vocab_size * run.model.width
    chunk = min(tokens, max(LOGITS_TOKENS, LOGITS // run.model.vocab_size)) * run.model.vocab_size
    # The portable form of the loss holds a chunk thrice and more, the native one once and works on it in place.
    logits = (12 if wide == 4 else 14) * chunk + (wide * head if stored != wide else 0)
    heads = 4 * (1 + depth) * head if run.adapter is None else 0
    earlier = gradients if rows < run.task.batch_rows else 0
    forward = _kept(run, tokens) + heads + logits + earlier
    return always + max(forward, gradients + 4 * MUON_COPIES * max(muon.values(), default=0))


def _kept(run: Run, tokens: int) -> int:
    """Bytes that autograd keeps of one micro-batch."""
    config, depth, wide, h = run.model, _depth(run), _wide(run), run.model.width

    def layer(letter: str) -> int:
        small = sum(wide * width for width in _cheap(letter, config) if tokens * wide * width <= SMALL)
        return _layer(letter, run) + small

    layers = list(map(layer, parse_pattern(config.pattern)))
    # embedded, both together, what the last norm reads and gives, and the gradient that the loss already knows
    block = 6 * wide * h + sum(map(layer, config.mtp.pattern)) if config.mtp else 0
    ends = 3 * wide * h  # the same of the backbone's last norm
    inner = sum(layers) + depth * block
    if run.train.activation_checkpointing:  # the prediction block has gone back before the first layer comes again
        again = (_layer(letter, run) + wide * sum(_cheap(letter, config)) for letter in parse_pattern(config.pattern))
        inner = len(layers) * wide * h + max(depth * block, *again)
    narrow = 0
    if wide < 4 and run.adapter is None:
        letters = config.pattern + (config.mtp.pattern * depth if config.mtp else "")
        kept = [_experts(config) if letter == "E" else 0 for letter in letters]
        narrow = wide * (max(kept) if run.train.activation_checkpointing else sum(kept))
    return tokens * (inner + ends) + narrow


def _layer(letter: str, run: Run) -> int:
    """Bytes per token that autograd keeps of one layer."""
    config, wide, length = run.model, _wide(run), run.task.sequence_length
    h, copied = config.width, 0 if wide == 4 else 4  # FP32 copies of what comes in a narrow format
    norm = wide * h + 4
    rank = wide * run.adapter.rank if run.adapter is not None else 0  # per adapted projection
    if letter == "M":
        assert config.mamba is not None
        m = config.mamba
        d = m.heads * m.head_width
        states = d * m.state_width * ((length - 1) // m.chunk) // length  # between the pieces of a row
        projected = 2 * d + 2 * m.groups * m.state_width + m.heads
        return norm + 4 * (m.groups + states) + copied * m.heads + wide * (projected + d) + 2 * rank
    if letter == "*":
        assert config.attention is not None
        a = config.attention
        return norm + 4 * a.heads + wide * (a.head_width * (3 * a.heads + 2 * a.kv_heads) + length) + 4 * rank
    if letter == "-":
        assert config.mlp is not None
        return norm + wide * config.mlp.hidden_width + 2 * rank
    assert config.moe is not None
    e = config.moe
    latent = 2 * e.latent_width if e.latent_width else 0
    routed = e.top_k * (e.expert_width + 2 * rank // wide)
    router = 4 * (e.experts + 5 * e.top_k) + copied * h
    return norm + router + wide * (e.shared_width + latent + routed) + 4 * rank


def _cheap(letter: str, config: HybridConfig) -> list[int]:
    """Numbers per token of each result that a layer would rather make again than keep."""
    if letter == "M":
        assert config.mamba is not None
        m = config.mamba
        inner = m.heads * m.head_width
        return [config.width, inner, inner + 2 * m.groups * m.state_width]
    if letter == "-":
        assert config.mlp is not None
        return [config.width, config.mlp.hidden_width]
    return [config.width] + ([config.moe.shared_width] if letter == "E" and config.moe is not None else [])


def _experts(config: HybridConfig) -> int:
    """Numbers in the matrices of the experts of a layer."""
    assert config.moe is not None
    e = config.moe
    return 2 * e.experts * e.expert_width * (e.latent_width or config.width)


def _muon_matrices(run: Run) -> dict[tuple[int, int], int]:
    """Numbers in all matrices that Muon takes together, by shape without its orientation; none with AdamW."""
    alike: dict[tuple[int, int], int] = defaultdict(int)
    if run.train.optimizer.kind == "muon":
        config, h = run.model, run.model.width
        for letter in parse_pattern(config.pattern) + (config.mtp.pattern if config.mtp else ""):
            for copies, rows, columns in _matrices(letter, config):
                alike[min(rows, columns), max(rows, columns)] += copies * rows * columns
        if config.mtp is not None:
            alike[h, 2 * h] += 2 * h * h
    return alike


def _matrices(letter: str, config: HybridConfig) -> Iterator[tuple[int, int, int]]:
    """Copies, rows and columns of the hidden matrices of a layer."""
    h = config.width
    if letter == "M":
        assert config.mamba is not None
        m = config.mamba
        d = m.heads * m.head_width
        yield from ((1, 2 * d + 2 * m.groups * m.state_width + m.heads, h), (1, h, d))
    elif letter == "*":
        assert config.attention is not None
        a = config.attention
        yield from ((2, a.heads * a.head_width, h), (2, a.kv_heads * a.head_width, h))
    elif letter == "-":
        assert config.mlp is not None
        yield (2, config.mlp.hidden_width, h)
    else:
        assert config.moe is not None
        e = config.moe
        yield from ((2, e.shared_width, h), (2 * e.experts, e.expert_width, e.latent_width or h))
        if e.latent_width:
            yield (2, e.latent_width, h)


def _depth(run: Run) -> int:
    """Applications of the prediction block that are learned from."""
    return run.model.mtp.depth if run.model.mtp is not None and run.model.mtp.loss_weight else 0


def _kept_in_few_bits(run: Run, total: int) -> int:
    """Bytes of the quantized weights that wait for the next micro-batch, as BF16 numbers; where blocks are no squares
    there are two of them, one for each pass."""
    found = [run.precision.products(format) for format in run.precision.formats()]  # type: ignore[arg-type]
    copies = [len({(w, None if w.same_both_ways else n) for n, w in enumerate((p.forward[1], p.input_gradient[1]))})
              for p in found if p is not None]  # fmt: skip
    return 2 * max(copies, default=0) * (total - 2 * run.model.vocab_size * run.model.width)


def _wide(run: Run) -> int:
    """Bytes of a number in the run's activation format."""
    return 2 if run.precision.activations == "bf16" else 4
