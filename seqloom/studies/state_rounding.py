"""What rounding does to a state that is rounded after every token: in a trained model, and in a bare recurrence.

The model reads held-out text token by token, once for every format, and all of them see the same tokens in lockstep.
The bare recurrence S <- exp(-dt) S + (1 - exp(-dt)) x b^T of an input that stays the same has a known end, and shows
what decides: an update below half a step vanishes under rounding to nearest, however often it comes. An entry that is
kept lies in the same state, since a block that grows or shrinks as a whole does so in its scale and never stalls.

Paper: Nemotron 3 Super and Ultra, on the precision of the SSM cache.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from seqloom.nn.state_formats import StateFormats

if TYPE_CHECKING:
    from torch import Tensor

    from seqloom.systems.hybrid_lm.model import HybridLM

HEADS, HEAD_WIDTH, STATE_WIDTH = 4, 16, 128
SITUATIONS = {"comes, dt 1e-4": (1e-4, 0.0, 1.0), "comes, dt 1e-3": (1e-3, 0.0, 1.0), "goes, dt 1e-4": (1e-4, 1.0, 0.0)}
"""Name -> dt, and the share of an entry that is in the state at first and in the input."""


def decode(model: "HybridLM", passages: "Tensor", cases: Mapping[str, StateFormats]) -> dict[str, Any]:
    """Loss and drift of a model in evaluation mode that remembers in each of some formats.

    Args:
        passages: token ids [B, T].
        cases: name -> how it remembers; without the first, "fp32", nothing can be compared.
    Returns:
        by case: "nats" per token; "drift", the divergence KL(fp32 || case) in nats by quarter of the passage; the share
        of places where the likeliest token is "another"; and the state's "bytes" of one row at the end.
    """
    import torch
    from torch.nn import functional as F

    rows, length = passages.shape
    asked = length - 1
    states: dict[str, Any] = {}
    for name, formats in cases.items():
        model.keep_states(formats)
        states[name] = model.new_states(rows)
    model.keep_states(StateFormats())
    nats, another = (dict.fromkeys(cases, 0.0) for _ in range(2))
    drift = {name: [0.0] * 4 for name in cases}
    with torch.inference_mode():
        for place in range(asked):
            exact = None
            for name in cases:
                logits = model(passages[:, place : place + 1], states=states[name])[:, 0]
                scores = logits.double().log_softmax(-1)  # a drift may be below what FP32 resolves
                exact = scores if exact is None else exact
                nats[name] += float(F.nll_loss(scores, passages[:, place + 1], reduction="sum"))
                apart = F.kl_div(scores, exact, reduction="sum", log_target=True)
                drift[name][4 * place // asked] += float(apart) / rows / (asked / 4)
                another[name] += int((scores.argmax(-1) != exact.argmax(-1)).sum())
    return {
        name: {
            "nats": nats[name] / (rows * asked),
            "drift": drift[name],
            "another": another[name] / (rows * asked),
            "bytes": sum(state.nbytes for state in states[name] if state is not None) // rows,
        }
        for name in cases
    }


def recurrence(cases: Mapping[str, StateFormats], steps: int) -> dict[str, dict[str, float]]:
    """Error of what is read from a bare recurrence after so many steps, as a share: case -> situation -> error; of the
    cases with a narrow SSM state."""
    import torch

    from seqloom.nn.narrow_state import NarrowMambaState

    random = torch.Generator().manual_seed(0)
    x, kept, entry = (torch.randn(1, HEADS, n, generator=random) for n in (HEAD_WIDTH, STATE_WIDTH, STATE_WIDTH))
    dt, before, after = (torch.tensor(column)[:, None, None] for column in zip(*SITUATIONS.values(), strict=True))
    first, target = (x[..., :, None] * (kept + share * entry)[..., None, :] for share in (before, after))
    decay = torch.exp(-dt)[..., None]
    update = (1 - decay) * target
    left = decay.double() ** steps
    truth = left * first + (1 - left) * target
    c = entry[0, ..., None].double()  # what was stored under a key is asked for by that key
    found = {}
    for name, case in cases.items():
        if case.ssm == "fp32":
            continue
        state = NarrowMambaState(torch.zeros(len(SITUATIONS), 0, 0), first, case.ssm, case.seed, "recurrence")
        for _ in range(steps):
            state.write(decay * state.read() + update)
        error = (state.read() - truth) @ c
        shares = error.flatten(1).norm(dim=1) / (truth @ c).flatten(1).norm(dim=1)
        found[name] = dict(zip(SITUATIONS, shares.tolist(), strict=True))
    return found
