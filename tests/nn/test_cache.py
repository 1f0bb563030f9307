"""Rows that come, grow, guess, move, branch off and go, held against plain lists of what each has seen."""

import random

import pytest
import torch
from serve.toy_model import D, ToyPages, ToySlots

from seqloom.nn.cache import HybridCache, Mark
from seqloom.nn.stores import Room

ROWS, PAGES, SIZE = 5, 14, 4


class Texts:
    """A cache whose backbone and prediction block remember token t as an entry full of t, and their sum as a state."""

    def __init__(self) -> None:
        self.backbone, self.slots, self.draft = ToyPages(PAGES, SIZE), ToySlots(ROWS), ToyPages(PAGES, SIZE)
        layers, room = [self.backbone, None, self.slots], Room(ROWS, PAGES, SIZE, 3)
        self.cache = HybridCache(layers, [None, self.draft], room)

    def feed(self, first: int, texts: list[list[int]], guessed: bool = False) -> None:
        tokens = torch.tensor(texts, dtype=torch.float32)
        paged, nothing, slots = self.cache.states(first, len(texts), len(texts[0]), guessed)
        assert nothing is None
        paged.append(tokens[..., None].expand(-1, -1, D + 1))
        slots.follow(slots.value[:, None] + tokens.cumsum(1)[..., None])

    def follow(self, row: int, tokens: list[int]) -> None:
        _, paged = self.cache.draft_states(row, 1, len(tokens))
        paged.append(torch.tensor(tokens)[None, :, None].expand(-1, -1, D + 1).float())

    def check(self, row: int, text: list[int], followed: list[int]) -> None:
        pages = self.cache._pool.tables[row].tolist()
        assert self.cache.lengths[row] == len(text)
        assert self.backbone.of(pages, len(text))[:, 0].tolist() == text
        assert self.draft.of(pages, len(followed))[:, 0].tolist() == followed
        assert self.slots.states[row].tolist() == [sum(text)] * D


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rows_hold_what_they_have_seen(seed: int) -> None:
    choose, texts = random.Random(seed), Texts()
    cache = texts.cache
    rows: list[tuple[list[int], list[int]]] = []  # of each row in use: what it has seen, and what its block has
    marks: list[tuple[Mark, list[int]]] = []
    refused = guesses = revived = 0
    for _ in range(300):
        event = choose.choice(
            ["begin", "grow", "grow", "grow", "guess", "mark", "mark", "revive", "revive", "forget", "leave"]
        )
        row = choose.randrange(len(rows)) if rows else -1
        if event == "begin" and len(rows) < ROWS:
            cache.clear(len(rows))
            rows.append(([], []))
        elif event == "grow" and rows:
            seen, followed = rows[row]
            tokens = [choose.randrange(1, 99) for _ in range(choose.choice([1, 3, 9, SIZE - len(seen) % SIZE]))]
            if cache.reserve(row, len(tokens)):
                texts.feed(row, [tokens])
                seen += tokens
                texts.follow(row, missing := [number + 100 for number in seen[len(followed) :]])
                followed += missing
            else:
                refused += 1
                assert cache.pages_for(len(seen) + len(tokens)) - cache.pages_for(len(seen)) > cache.free_pages
        elif event == "guess" and rows and all(seen for seen, _ in rows):
            width = choose.randint(2, 4)
            if all(cache.reserve(index, width) for index in range(len(rows))):
                fed = [[choose.randrange(1, 99) for _ in range(width)] for _ in rows]
                kept = [choose.randint(1, width) for _ in rows]
                texts.feed(0, fed, guessed=True)
                cache.keep(0, kept)
                before = cache.save_draft(0, len(rows))
                for index in range(len(rows)):
                    texts.follow(index, [7] * (width - 1))  # its own guesses, which it forgets again
                cache.load_draft(before)
                for (seen, _), tokens, count in zip(rows, fed, kept, strict=True):
                    seen += tokens[:count]
                guesses += 1
        elif event == "mark" and rows and (seen := rows[row][0]) and len(seen) % SIZE == 0:
            marks.append((cache.mark(row), list(seen)))
        elif event == "revive" and marks and len(rows) < ROWS:
            mark, seen = choose.choice(marks)
            if cache.revive(len(rows), mark):
                revived += 1
                rows.append((list(seen), [number + 100 for number in seen[:-1]]))
                texts.cache._draft.lengths[len(rows) - 1] = (
                    0  # as far as the block had followed is not the mark's business
                )
                texts.follow(len(rows) - 1, rows[-1][1])
            else:
                assert cache.free_pages == 0
        elif event == "forget" and marks:
            cache.forget(marks.pop(choose.randrange(len(marks)))[0])
        elif event == "leave" and rows:
            cache.release(row)
            if row < len(rows) - 1:
                cache.move(len(rows) - 1, row)
            rows[row] = rows[-1]
            rows.pop()
        for index, (seen, followed) in enumerate(rows):
            texts.check(index, seen, followed)
        assert cache.free_pages == PAGES - len(
            {page for held in cache._pool.held for page in held} | {page for mark, _ in marks for page in mark.pages}
        )
    assert refused
    assert guesses
    assert revived
    for index in range(len(rows)):
        cache.release(index)
    for mark, _ in marks:
        cache.forget(mark)
    assert cache.free_pages == PAGES


def test_a_mark_says_what_it_costs_and_what_goes_back() -> None:
    texts = Texts()
    cache = texts.cache
    cache.clear(0)
    assert cache.reserve(0, 9)
    texts.feed(0, [[1] * 8])
    mark = cache.mark(0)
    assert (mark.tokens, len(mark.pages), mark.nbytes) == (8, 2, 4 * D)
    cache.release(0)
    assert (cache.free_pages, cache.pages_in_rows) == (PAGES - 2, 0)
    assert cache.revive(1, mark)
    assert (cache.free_pages, cache.pages_in_rows) == (PAGES - 3, 2)  # the last page was copied
    assert cache.drafts_revive
    cache.forget(mark)
    assert cache.free_pages == PAGES - 2
    assert not HybridCache([], [texts.slots], Room(ROWS, PAGES, SIZE, 3)).drafts_revive
