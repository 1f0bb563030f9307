"""Each token of a message has its log-probability, and no other token has one, however the answer comes."""

import pytest

from seqloom.serve.channels import ChannelMarks, Channels
from seqloom.serve.http.answers import Choice
from seqloom.serve.http.model import ServedModel
from seqloom.serve.http.responses_logprobs import MessageLogprobs
from seqloom.serve.tool_calls import ToolCallParser

THOUGHTS = "<think>\nk, or think</think>\n\n"
CALL = '<tool_call>\n{"name": "k", "arguments": {}}\n</tool_call>'


@pytest.mark.parametrize("words", ["k: 日本 <b> naïve 😀 </th>", "think", "<tool", "</think>"])
@pytest.mark.parametrize("before", ["", THOUGHTS, "<think></think>", CALL])
def test_words_have_those_of_their_own_tokens(folder, before, words):
    model = ServedModel(folder, "fake")
    marks = ChannelMarks(
        think_open="<think>", think_close="</think>", tool_open="<tool_call>", tool_close="</tool_call>"
    )
    first = len(model.tokenizer.encode(before, specials=True))
    ids = [*model.tokenizer.encode(before, specials=True), *model.tokenizer.encode(words, specials=True)]
    found = []
    for size in (1, 2, 3, len(ids)):
        channels, choice = Channels(model.tokenizer, [], marks), Choice(ToolCallParser("json", []))
        logprobs, said = MessageLogprobs(model), []
        for start in range(0, len(ids), size):
            tokens = ids[start : start + size]
            pieces = [piece for token in tokens for piece in channels.push(token)]
            update = {"id": 0, "pieces": pieces, "tokens": tokens}
            update["logprobs"] = [(-float(place), []) for place in range(start, start + len(tokens))]
            if start + size >= len(ids):
                pieces += channels.flush()
            logprobs.feed(update)
            said += [one for field, text in choice.feed(update) if field == "content" for one in logprobs.said(text)]
        assert b"".join(bytes(one["bytes"]) for one in said).decode() == words
        found.append([-one["logprob"] for one in said])
    assert found == [list(range(first, len(ids)))] * 4
