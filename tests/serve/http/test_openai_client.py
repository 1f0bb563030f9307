"""The official client, unchanged, gets what OpenAI's own server would give it."""

import asyncio

import pytest
from pydantic import BaseModel

openai = pytest.importorskip("openai")

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
CALL = """<tool_call>
<function=weather>
<parameter=city>
{city}
</parameter>
<parameter=days>
3
</parameter>
</function>
</tool_call>"""


OTHER = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "other"}}]}


class Place(BaseModel):
    city: str
    people: int


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_parts_of_a_text_are_a_text(client):
    parts = [{"type": "text", "text": text} for text in ("Now:", "SAY{good day}")]
    found = client.chat.completions.create(model="fake", messages=[{"role": "user", "content": parts}])
    assert found.choices[0].message.content == "good day"


def ask(text):
    return {"model": "fake", "messages": [{"role": "user", "content": text}]}


def test_a_whole_answer(client):
    found = client.chat.completions.create(**ask("SAY{Good day to you}"), seed=-1, user="me")
    (choice,) = found.choices
    assert (choice.message.content, choice.finish_reason) == ("Good day to you", "stop")
    assert choice.message.tool_calls is None
    assert found.usage.completion_tokens == 5
    assert found.usage.prompt_tokens == found.usage.total_tokens - 5
    assert found.usage.completion_tokens_details.accepted_prediction_tokens == 4
    assert [model.id for model in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").id == "fake"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**{**ask("SAY{a}"), "model": "gpt-9"})


def test_events_come_in_the_order_that_strict_clients_need(client):
    stream = client.chat.completions.create(
        **ask("SAY{<think> I think </think> Yes it is}"), stream=True, stream_options={"include_usage": True},
        extra_body={"thinking_tokens": 9},
    )  # fmt: skip
    *chunks, last = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    fields = [
        field for chunk in chunks for field in chunk.choices[0].delta.model_dump(exclude_none=True, exclude={"role"})
    ]
    assert list(dict.fromkeys(fields)) == [
        "content",
        "reasoning_content",
    ]  # the first content is the empty one of the role
    assert fields[1] == "reasoning_content"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text.strip() == "Yes it is"
    assert [chunk.choices[0].finish_reason for chunk in chunks].index("stop") == len(chunks) - 1
    assert last.choices == []
    assert last.usage.completion_tokens_details.reasoning_tokens > 0
    assert {chunk.id for chunk in chunks} == {last.id}


def test_length_ends_an_answer(client):
    found = client.chat.completions.create(**ask("go on"), max_completion_tokens=3)
    assert found.choices[0].finish_reason == "length"
    assert found.choices[0].message.content == "one two three"


def test_several_choices_with_logprobs(client):
    found = client.chat.completions.create(**ask("SAY{a b}"), n=3, logprobs=True, top_logprobs=2)
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    for choice in found.choices:
        assert [len(one.top_logprobs) for one in choice.logprobs.content] == [2, 2, 2]
    assert found.usage.completion_tokens == 9
    streamed = client.chat.completions.create(**ask("SAY{a b}"), n=2, logprobs=True, stream=True)
    chunks = list(streamed)
    for index in range(2):
        mine = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert sum(len(one.logprobs.content) for one in mine if one.logprobs) == 3


def test_calls_of_tools(client):
    text = "SAY{Let me see. " + CALL.format(city="Bern") + CALL.format(city="Rome") + "}"
    found = client.chat.completions.create(**ask(text), tools=[TOOL], max_tokens=99).choices[0]
    assert found.finish_reason == "tool_calls"
    assert [call.function.arguments for call in found.message.tool_calls] == [
        '{"city": "Bern", "days": 3}',
        '{"city": "Rome", "days": 3}',
    ]
    with client.chat.completions.stream(**ask(text), tools=[TOOL], max_tokens=99) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert [call.function.arguments for call in streamed.message.tool_calls] == [
        call.function.arguments for call in found.message.tool_calls
    ]
    again = client.chat.completions.create(
        model="fake",
        messages=[
            {"role": "user", "content": "weather?"},
            found.message,
            *({"role": "tool", "tool_call_id": call.id, "content": "SAY{sunny}"} for call in found.message.tool_calls),
        ],
        tools=[TOOL],
    )
    assert again.choices[0].message.content == "sunny"
    alone = client.chat.completions.create(**ask(text), tools=[TOOL], parallel_tool_calls=False, max_tokens=99)
    assert len(alone.choices[0].message.tool_calls) == 1


def test_answers_of_a_schema(client):
    said = '{"city": "Bern", "people": 137000}'
    found = client.chat.completions.parse(**ask(f"SAY{{{said}}}"), response_format=Place)
    assert found.choices[0].message.parsed == Place(city="Bern", people=137000)
    answer = client.responses.parse(model="fake", input=f"SAY{{{said}}}", text_format=Place)
    assert answer.output_parsed == Place(city="Bern", people=137000)


def test_completions(client):
    found = client.completions.create(model="fake", prompt=["SAY{a}", "SAY{b c}"], n=2)
    assert [choice.text for choice in found.choices] == ["a", "a", "b c", "b c"]
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert found.usage.prompt_tokens == 2 * 7 + 2
    streamed = client.completions.create(model="fake", prompt="COUNT{4}", stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == "1 2 3 4"
    counted = client.completions.create(
        model="fake", prompt="COUNT{3}", stream=True, extra_body={"stream_options": {"continuous_usage_stats": True}}
    )
    assert [chunk.usage.completion_tokens for chunk in counted] == [1, 2, 3, 4]


def test_prompts_are_scored(client):
    ids = [1, 40, 50, 60]
    for most, drawn in ((0, 0), (1, 1)):
        found = client.completions.create(model="fake", prompt=[ids, ids], echo=True, logprobs=1, max_tokens=most)
        scores = found.choices[1].logprobs
        assert scores.token_logprobs == [None, *[-0.5] * (3 + drawn)]
        assert scores.top_logprobs[0] is None
        assert len(scores.text_offset) == len(scores.tokens) == 4 + drawn
        assert found.usage.completion_tokens == 2 * drawn


def test_responses(client):
    found = client.responses.create(
        model="fake", input="SAY{<think> hm </think> Good day}", reasoning={"effort": "low"}
    )
    assert found.status == "completed"
    assert found.output_text.strip() == "Good day"
    assert [item.type for item in found.output] == ["reasoning", "message"]
    assert found.usage.output_tokens_details.reasoning_tokens == 2
    again = client.responses.create(
        model="fake", instructions="Be kind.", store=False,
        input=[{"role": "user", "content": "x"}, *found.output, {"role": "user", "content": "SAY{again}"}],
    )  # fmt: skip
    assert again.output_text == "again"
    alone = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]}
    tools = [{"type": "function", **TOOL["function"]}, {"type": "function", "name": "other"}]
    scored = client.responses.create(
        model="fake", input="SAY{a b}", include=["message.output_text.logprobs"], top_logprobs=2, tools=tools,
        tool_choice=alone,
    )  # fmt: skip
    assert [len(one.top_logprobs) for one in scored.output[0].content[0].logprobs] == [2, 2]
    short = client.responses.create(model="fake", input="go on", max_output_tokens=2)
    assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    call = "SAY{" + CALL.format(city="Bern") + "}"
    for most, status in ((5, "incomplete"), (99, "completed")):
        called = client.responses.create(model="fake", input=call, tools=tools, max_output_tokens=most).output[0]
        assert (called.type, called.status) == ("function_call", status)


def test_the_tokens_of_an_input_are_those_of_its_answer(client):
    asked = {
        "model": "fake", "instructions": "Be kind.", "input": [{"role": "user", "content": "SAY{a}"}],
        "tools": [{"type": "function", **TOOL["function"]}], "reasoning": {"effort": "none"},
    }  # fmt: skip
    answer = client.responses.create(**asked, previous_response_id=None)
    assert client.responses.input_tokens.count(**asked).input_tokens == answer.usage.input_tokens
    assert client.responses.input_tokens.count(model="fake", input="one " * 9000).input_tokens > 9000


def test_requests_have_names(client):
    def named(**headers):
        found = client.chat.completions.with_raw_response.create(**ask("SAY{a}"), extra_headers=headers)
        return found.request_id

    assert named(**{"x-client-request-id": "mine/1", "x-request-id": "other"}) == "mine/1"
    assert named(**{"x-request-id": "mine"}) == "mine"
    own = {named(), named(**{"x-request-id": "a b"}), named(**{"x-request-id": "x" * 600})}
    assert len(own) == 3
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("other")
    assert all(name.startswith("req_") for name in (*own, refused.value.request_id))


def test_what_clients_send_and_changes_nothing(client):
    sent = {
        "max_completion_tokens": 9, "reasoning_effort": "max", "parallel_tool_calls": True, "service_tier": "auto",
        "store": False, "metadata": {"a": "b"}, "prediction": {"type": "content", "content": "x"},
        "safety_identifier": "me", "prompt_cache_key": "k", "prompt_cache_options": {"mode": "implicit"},
        "prompt_cache_retention": "24h", "verbosity": "medium", "modalities": ["text"], "audio": None,
    }  # fmt: skip
    assert (
        client.chat.completions.create(**ask("SAY{<think> hm </think> a}"), **sent).choices[0].message.content == " a"
    )


def test_events_of_responses(client):
    tool = {"type": "function", **TOOL["function"]}
    with client.responses.stream(
        model="fake", input="SAY{Let me see. " + CALL.format(city="Bern") + "}", tools=[tool], max_output_tokens=99
    ) as stream:
        events = list(stream)
        final = stream.get_final_response()
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:5] == ["created", "in_progress", "output_item.added", "content_part.added", "output_text.delta"]
    assert kinds[-1] == "completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    message, call = final.output
    assert message.content[0].text.strip() == "Let me see."
    assert call.arguments == '{"city": "Bern", "days": 3}'
    assert kinds.count("output_item.done") == kinds.count("output_item.added") == 2


def test_many_at_once_with_the_client_that_waits(server):
    async def run():
        async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="none") as client:
            asked = [client.chat.completions.create(**ask(f"SAY{{number {n}}}")) for n in range(20)]
            texts = [found.choices[0].message.content for found in await asyncio.gather(*asked)]
            stream = await client.chat.completions.create(**ask("COUNT{3}"), stream=True)
            return texts, "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    texts, streamed = asyncio.run(run())
    assert texts == [f"number {n}" for n in range(20)]
    assert streamed == "1 2 3"


IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"temperature": -1}, "temperature: "),
        ({"extra_body": {"n_best": 3}}, "n_best: is not known here"),
        ({"moderation": {"model": "m"}}, "moderation: cannot be used here; leave it out"),
        ({"store": True}, "store: "),
        ({"service_tier": "priority"}, "service_tier: "),
        ({"verbosity": "low"}, "verbosity: "),
        ({"max_tokens": 1 << 20}, "the prompt has "),
        ({"messages": [IMAGE]}, "messages: only parts of text"),
        ({"tool_choice": "required"}, "tool_choice: "),
        ({"top_logprobs": 2}, "top_logprobs: "),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": OTHER}}, "tool_choice: "),
    ],
)
def test_what_cannot_be_is_an_error_that_names_it(client, wrong, named):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{**ask("SAY{a}"), **wrong})
    assert refused.value.body["message"].startswith(named)
