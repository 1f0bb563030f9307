"""Updates are written by hand for speed; what reads them is Python's own JSON."""

import json
from types import SimpleNamespace

from seqloom.serve.request import Usage
from seqloom.serve.update import update


def test_an_update_is_json_of_what_is_new() -> None:
    pieces = [("reasoning", '"q" \\ \x00\x1f\x7f\n'), ("content", "é 日 😀 \u2028\ud800"), ("tool", "")]
    fresh = SimpleNamespace(pieces=pieces, token_ids=[1, 20], logprobs=None, prompt_logprobs=None)
    request = SimpleNamespace(fresh=fresh, finish_reason=None, failure=None, error=None)
    plain = {"id": 3, "pieces": [list(piece) for piece in pieces], "tokens": [1, 20]}
    assert json.loads(update(3, request, progress=False)) == plain
    fresh.logprobs = [SimpleNamespace(logprob=-0.5, top=[(1, -0.5)]), SimpleNamespace(logprob=None, top=[])]
    request.finish_reason, request.error = "stop", 'a "reason"'
    request.usage = Usage(
        prompt_tokens=1, cached_tokens=2, completion_tokens=3, reasoning_tokens=4, forced_tokens=5, drafted_tokens=6,
        accepted_tokens=7,
    )  # fmt: skip
    assert json.loads(update(3, request, progress=False)) == {
        **plain, "logprobs": [[-0.5, [[1, -0.5]]], [None, []]], "finish": "stop", "error": 'a "reason"',
        "usage": vars(request.usage),
    }  # fmt: skip
