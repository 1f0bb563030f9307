import torch
from serve.toy_model import ToyModel

from seqloom.serve.drafting import MtpDrafter, verify


def first(logits: torch.Tensor, place: int) -> int:
    return int(logits.argmax())


def one_hot(tokens: list[int]) -> torch.Tensor:
    return torch.eye(11)[tokens]


def test_guesses_are_kept_up_to_the_first_wrong_one() -> None:
    logits = one_hot([4, 5, 6, 7])
    assert verify(logits, [4, 5, 6], first) == [4, 5, 6, 7]
    assert verify(logits, [4, 5, 9], first) == [4, 5, 6]
    assert verify(logits, [4, 9, 6], first) == [4, 5]
    assert verify(logits, [9, 5, 6], first) == [4]
    assert verify(logits[:1], [], first) == [4]


@torch.inference_mode()
def test_guessing_leaves_no_trace_in_the_memory_of_the_block() -> None:
    model = ToyModel()
    drafter = MtpDrafter(model)
    assert drafter.propose(3, first) == []
    ids = [3, 5, 7, 4, 9]
    hidden, _ = model.hidden(torch.tensor([ids[:-1]]), states=model.new_states(1))
    drafter.follow(hidden[:, :2], ids[1:3])
    guesses = drafter.propose(4, first)
    assert drafter.propose(4, first) == guesses
    drafter.follow(hidden[:, 2:], ids[3:])
    seen = model.mtp.memories[0].value
    assert torch.equal(seen[..., :-1], hidden)
    assert seen[0, :, -1].tolist() == ids[1:]


@torch.inference_mode()
def test_each_guess_is_made_from_the_block_output_before() -> None:
    model = ToyModel(draft_error=0.0)  # the block is then the backbone, and guesses are greedy answers
    states = model.new_states(1)
    hidden, _ = model.hidden(torch.tensor([[3, 5]]), states=states)
    drafter = MtpDrafter(model)
    drafter.follow(hidden[:, :1], [5])
    guesses = drafter.propose(4, first)
    answer, newest = [], hidden
    for _ in range(4):
        answer.append(first(model.head(newest)[0, -1], 0))
        newest, _ = model.hidden(torch.tensor([answer[-1:]]), states=states)
    assert guesses == answer
