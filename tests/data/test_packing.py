"""Whole conversations in rows: the packing, the targets, and that a model learns the same from them as alone."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_models
from seqloom.data.mixture import InOrder, Mixture
from seqloom.data.packing import PackedRows, pack
from seqloom.data.rows import NO_DOCUMENT, NO_TARGET, RowSource
from seqloom.data.shards import StreamWriter, TokenStream, token_dtype
from seqloom.systems.hybrid_lm.loss import cross_entropy, targets_ahead

PAD = 0
ROOM = 16


def stream(folder: Path, name: str, documents: list[list[int]]) -> TokenStream:
    writer = StreamWriter(folder, name, token_dtype(300), shard_tokens=7)
    for document in documents:
        writer.begin()
        writer.append(document, n_bytes=0)
    return TokenStream(folder, name, writer.close())


def packed(folder: Path, conversations: list[tuple[list[int], list[int]]], room: int = ROOM) -> PackedRows:
    tokens, learned = [ids for ids, _ in conversations], [mask for _, mask in conversations]
    rows = pack([len(ids) for ids in tokens], room)
    facts = {"documents": len(tokens), "tokens": sum(map(len, tokens)), "bytes": 0}
    return PackedRows(
        stream(folder, "tokens", tokens), stream(folder, "learned", learned), stream(folder, "rows", rows), facts
    )


def in_order(rows: PackedRows, room: int = ROOM) -> RowSource:
    return RowSource([rows], InOrder([len(rows)]), room, PAD)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 70).flatmap(lambda room: st.tuples(st.just(room), st.lists(st.integers(1, room), max_size=80))))
def test_every_item_is_in_one_row_and_every_row_holds_its_items(case: tuple[int, list[int]]) -> None:
    room, lengths = case
    rows = pack(lengths, room)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    filled = [sum(lengths[item] for item in row) for row in rows]
    assert all(0 < size <= room for size in filled)
    # No two rows could be one: the emptiest two together are too much.
    assert len(rows) < 2 or sum(sorted(filled)[:2]) > room
    assert rows == pack(lengths, room)


def test_lengths_as_they_occur_fill_rows() -> None:
    lengths = (torch.distributions.LogNormal(5.5, 0.9).sample((2000,)).clamp(8, 2048)).long().tolist()
    assert sum(lengths) / (len(pack(lengths, 2048)) * 2048) > 0.98


def test_targets_are_the_learned_tokens_and_nothing_else(tmp_path: Path) -> None:
    first = ([11, 12, 13, 14, 15, 16], [0, 0, 0, 1, 1, 0])
    second = ([21, 22, 23], [0, 1, 1])
    rows = in_order(packed(tmp_path, [second, first], room=10), 10).rows([0])
    none = NO_TARGET
    assert rows.tokens.tolist() == [[11, 12, 13, 14, 15, 16, 21, 22, 23, PAD]]
    assert rows.targets.tolist() == [[none, none, 14, 15, none, none, 22, 23, none, none]]
    assert rows.documents.tolist() == [[0, 0, 0, 0, 0, 0, 1, 1, 1, NO_DOCUMENT]]


conversation = st.integers(2, ROOM).flatmap(
    lambda size: st.tuples(
        st.lists(st.integers(3, 250), min_size=size, max_size=size),
        st.lists(st.integers(0, 1), min_size=size - 1, max_size=size - 1).map(lambda mask: [0, *mask]),
    )
)


@settings(max_examples=40, deadline=None)
@given(st.lists(conversation, min_size=1, max_size=12), st.integers(0, 2**32))
def test_an_epoch_shows_every_conversation_once(
    tmp_path_factory: pytest.TempPathFactory, conversations: list[tuple[list[int], list[int]]], seed: int
) -> None:
    rows = packed(tmp_path_factory.mktemp("s"), conversations)
    source = RowSource([rows], Mixture([len(rows)], [(0, [1.0])], seed), ROOM, PAD)
    for epoch in range(2):
        found = source.rows(range(epoch * len(rows), (epoch + 1) * len(rows)))
        shown = []
        for tokens, targets, documents in zip(*found, strict=True):
            for number in range(int(documents.max()) + 1):
                at = documents == number
                assert at.nonzero().flatten().diff().eq(1).all()
                learned = [0, *(targets[at] != NO_TARGET).int().tolist()[:-1]]
                shown.append((tokens[at].tolist(), learned))
                assert targets[at][-1] == NO_TARGET
        assert sorted(shown) == sorted(conversations)


@pytest.mark.parametrize("variant", ["dense", "mtp"])
def test_a_packed_row_costs_what_its_conversations_cost_alone(variant: str, tmp_path: Path) -> None:
    model = tiny_models.make(variant)
    draw = torch.Generator().manual_seed(3)
    sizes = [9, 14, 5, 20]
    conversations = [
        (
            torch.randint(3, 250, (size,), generator=draw).tolist(),
            [0, *torch.randint(0, 2, (size - 2,), generator=draw).tolist(), 1],
        )
        for size in sizes
    ]

    def cost(rows: RowSource) -> list[torch.Tensor]:
        batch = rows.rows([0])
        hidden, _ = model.hidden(batch.tokens, batch.documents)
        costs = [cross_entropy(model, hidden, batch.targets)]
        if model.mtp is not None:
            ahead, _ = model.look_ahead(hidden, batch.tokens, batch.documents, 2)
            costs += [cross_entropy(model, state, targets_ahead(batch, k)) for k, state in enumerate(ahead, 1)]
        return costs

    (tmp_path / "all").mkdir()
    together = packed(tmp_path / "all", conversations, sum(sizes) + 4)
    assert len(together) == 1
    separate = []
    for number, one in enumerate(conversations):
        (tmp_path / str(number)).mkdir()
        separate.append(cost(in_order(packed(tmp_path / str(number), [one], len(one[0])), len(one[0]))))
    for packed_cost, costs in zip(cost(in_order(together, sum(sizes) + 4)), zip(*separate, strict=True), strict=True):
        torch.testing.assert_close(packed_cost, sum(costs), rtol=1e-5, atol=1e-5)
        assert packed_cost > 1
