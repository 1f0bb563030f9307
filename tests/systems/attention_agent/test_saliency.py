"""Perturbation saliency on agents whose only interest is known, and the blur against SciPy's."""

import pytest
import torch
from torch import nn

from seqloom.rl.unroll import Seen
from seqloom.systems.attention_agent.model import AgentOutput, AgentState, AttentionAgent
from seqloom.systems.attention_agent.saliency import agreement, blur, resized, saliency


class Interested(AttentionAgent):
    """Its policy and value depend on one pixel of the frame, and on what it remembers."""

    def __init__(self, row: int, column: int) -> None:
        nn.Module.__init__(self)
        self.row, self.column = row, column

    def forward(self, seen: Seen, state: AgentState, look: bool = False) -> AgentOutput:
        seen_there = seen.frames[..., self.row, self.column, 0].float() / 255 + state.core_h[:, 0]
        logits = torch.stack([seen_there, -seen_there], dim=-1)
        return AgentOutput(logits, 2 * seen_there, state, None)


def scene(rows: int = 80, columns: int = 80) -> tuple[Seen, AgentState]:
    torch.manual_seed(0)
    frames = torch.zeros(1, 1, rows, columns, 3, dtype=torch.uint8)
    frames[0, 0, 52:54, 22:24] = 255
    empty = torch.zeros(1, 0)
    seen = Seen(frames, torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.bool))
    return seen, AgentState(empty, empty, torch.zeros(1, 1), empty)


def test_what_the_policy_depends_on_is_found() -> None:
    seen, state = scene()
    found = saliency(Interested(52, 22), seen, state)
    assert found.policy.shape == (16, 16)  # a patch every 5 pixels
    assert divmod(int(found.policy.argmax()), 16) == (10, 4)
    assert divmod(int(found.value.argmax()), 16) == (10, 4)
    assert float(found.policy[0, 15]) == 0.0


def test_scores_are_those_of_the_formula() -> None:
    seen, state = scene()
    agent = Interested(52, 22)
    found = saliency(agent, seen, state)
    frame = seen.frames[0, 0].float()
    middle = torch.tensor([10 * 5 + 2.0, 4 * 5 + 2.0])
    mask = torch.exp(-((torch.tensor([52.0, 22.0]) - middle) ** 2).sum() / (2 * 5.0**2))
    pixel = (frame[52, 22, 0] + (blur(frame, 3.0)[52, 22, 0] - frame[52, 22, 0]) * mask).round() / 255
    before, after = (torch.softmax(torch.stack([x, -x]), 0) for x in (torch.tensor(1.0), pixel))
    torch.testing.assert_close(found.policy[10, 4], (before - after).square().sum() / 2)
    torch.testing.assert_close(found.value[10, 4], (2 * (1 - pixel)) ** 2 / 2)


def test_memory_stays_as_it_was() -> None:
    seen, state = scene()
    calm = saliency(Interested(52, 22), seen, state).policy[10, 4]
    sure = saliency(Interested(52, 22), seen, state._replace(core_h=torch.full((1, 1), 5.0))).policy[10, 4]
    assert 0 < float(sure) < 1e-3 * float(calm)


def test_widths_follow_the_size_of_the_frame() -> None:
    seen, state = scene(160, 240)
    assert saliency(Interested(52, 22), seen, state).policy.shape == (16, 24)


def test_the_blur_is_scipys() -> None:
    filters = pytest.importorskip("scipy.ndimage")
    torch.manual_seed(0)
    frame = torch.rand(30, 24, 3)
    expected = filters.gaussian_filter(frame.double().numpy(), (2.0, 2.0, 0), mode="nearest", truncate=3)
    torch.testing.assert_close(blur(frame, 2.0).double(), torch.from_numpy(expected), atol=1e-6, rtol=0)


def test_agreement_is_a_correlation() -> None:
    torch.manual_seed(0)
    scores = torch.rand(6, 6)
    assert agreement(scores, scores[None]) == pytest.approx(1.0)
    assert agreement(scores, (1 - scores)[None]) == pytest.approx(-1.0)
    maps = torch.rand(3, 6, 6)
    expected = torch.corrcoef(torch.stack([scores.flatten(), maps.mean(0).flatten()]))[0, 1]
    assert agreement(scores, maps) == pytest.approx(float(expected), abs=1e-5)
    assert agreement(torch.ones(6, 6), maps) == 0.0
    assert resized(torch.arange(4.0).view(2, 2), 1, 1).item() == pytest.approx(1.5)
