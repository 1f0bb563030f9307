import pytest
from serve.byte_tokens import ByteTokens
from serve.test_constraints import TOOLS, accepts

from seqloom.serve.call_grammar import offered_calls
from seqloom.serve.constraints import Grammars
from seqloom.serve.marks import TOOL_CLOSE, TOOL_OPEN
from seqloom.serve.vocabulary import Vocabulary

CALLS = {
    "xml": "{0}\n<function=first>\n<parameter=text>\na\n</parameter>\n<parameter=count>\n3\n</parameter>\n"
    "</function>\n{1}",
    "json": '{0}\n{{"name": "first", "arguments": {{"text": "a", "count": 3}}}}\n{1}',
}


@pytest.mark.parametrize("form", ["xml", "json"])
def test_calls_of_strict_tools_keep_to_their_schemas_and_all_else_is_free(form: str) -> None:
    pytest.importorskip("llguidance")
    tokenizer = ByteTokens(TOOL_OPEN, TOOL_CLOSE)
    strict, free = [{**tool["function"], "strict": number == 0} for number, tool in enumerate(TOOLS)]
    grammar = offered_calls(form, [strict, free], tokenizer)
    assert grammar is not None
    grammars = Grammars(Vocabulary(tokenizer, tokenizer.size))
    call = CALLS[form].format(TOOL_OPEN, TOOL_CLOSE)

    def can_be(text: str) -> bool:
        return accepts(grammars.matcher(grammar, [tokenizer.eos]), tokenizer, text)

    for text in ("", "Well, <b>\n\n3 > 2", call, f"First: {call}\n{call} done", call.replace("first", "second")):
        assert can_be(text)
    assert can_be(call.replace("first", "second").replace("3", '"x"'))
    assert not can_be(call.replace("3", '"x"'))
    assert not can_be(call.replace("first", "third"))
    assert not can_be(f"Well {TOOL_OPEN}x")
    assert offered_calls(form, [free], tokenizer) is None
    assert offered_calls(form, [strict], ByteTokens()) is None
