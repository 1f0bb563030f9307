"""What a person means by a record: a chat, a question with its answer, or a text.

The first shape that fits is taken; other fields, of the record and of its messages, are passed over.

    {"messages": [{"role": "user", "content": "…"}, …], "tools": […]}       chat
    {"conversations": [{"from": "human", "value": "…"}, …]}                 chat as ShareGPT writes it
    {"instruction": "…", "input": "…", "output": "…"}                       pair as Alpaca writes it
    {"prompt": "…", "completion" or "response" or "answer": "…"}            pair; with a list of messages in it: chat
    {"question": "…", "answer": "…"}                                        pair
    {"text": "…"}                                                           text

A record may bring a `system` text of its own. What follows the last answer of a chat teaches nothing and is left away.
"""

import json
from typing import Any, NamedTuple

CHATS = ("messages", "conversations")
PAIRS = (
    ("instruction", "output", "\n\n"),
    ("instruction", "response", "\n\n"),
    ("prompt", "completion", ""),
    ("prompt", "response", ""),
    ("prompt", "answer", ""),
    ("question", "answer", "\n\n"),
)
"""Field of the question, field of the answer, and what stands between them where no chat template says it: nothing,
where people end the prompt as they want it to end."""
INSTEAD_OF_CONTENT = ("tool_calls", "reasoning_content", "thinking", "reasoning")
MESSAGE_FIELDS = ("role", "content", "name", "tool_call_id", *INSTEAD_OF_CONTENT)
SPEAKERS = {
    **{"human": "user", "user": "user", "system": "system"},
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "model", "bing", "bard"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
}
"""Names in ShareGPT's "from" -> roles."""


class RecordError(Exception):
    """A record that cannot be learned from: a reason in a few words to count it under, and what exactly is wrong."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Chat(NamedTuple):
    """Messages, the answers among which are learned."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None
    given: int = 0
    """So many messages at the beginning are a prompt, answers among them included."""


class Pair(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str
    system: str = ""
    between: str = ""

    def chat(self) -> Chat:
        """The same as messages."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        turns = [{"role": "user", "content": self.question}, {"role": "assistant", "content": self.answer}]
        return Chat([*system, *turns])

    def prompt(self) -> str:
        """What stands before the answer where no chat template says it."""
        system = f"{self.system}\n\n" if self.system else ""
        return f"{system}{self.question}{self.between}"


class Text(NamedTuple):
    """A text, learned from its beginning to its end."""

    text: str


def understand(fields: dict[str, Any], text_field: str) -> Chat | Pair | Text:
    """Find out which shape a record has.

    Raises:
        RecordError: it has none, or something is missing or wrong in it.
    """
    found = {key: value for key, value in fields.items() if value is not None}  # a table has every field in every row
    system = _string(found, "system") if "system" in found else ""
    tools = _tools(found["tools"]) if "tools" in found else None
    for key in CHATS:
        if key in found:
            return _chat(_messages(found[key], key), tools, system)
    for question, answer, between in PAIRS:
        if question in found and answer in found:
            return _pair(found, question, answer, between, system, tools)
    if text_field in found:
        return Text(_filled(_string(found, text_field), "empty text", text_field))
    pairs = ", ".join(f"{question}+{answer}" for question, answer, _ in PAIRS)
    raise RecordError(
        "of no known shape",
        f"keys here: {', '.join(sorted(fields)[:20]) or 'none'}; known: {', '.join(CHATS)}, {pairs}, {text_field}",
    )


def _pair(
    found: dict[str, Any], question: str, answer: str, between: str, system: str, tools: list[Any] | None
) -> Chat | Pair:
    more = _string(found, "input").strip() if question == "instruction" and "input" in found else ""
    if more:
        found = found | {question: f"{_string(found, question)}\n\n{more}"}
    if isinstance(found[question], str) and isinstance(found[answer], str) and tools is None:
        return Pair(found[question], _filled(found[answer], "empty answer", answer), system, between)
    before, after = (
        [{"role": role, "content": _string(found, key)}] if isinstance(found[key], str) else _messages(found[key], key)
        for key, role in ((question, "user"), (answer, "assistant"))
    )
    return _chat(before + after, tools, system, given=len(before))


def _chat(messages: list[dict[str, Any]], tools: list[Any] | None, system: str, given: int = 0) -> Chat:
    if system and not (messages and messages[0]["role"] == "system"):
        messages, given = [{"role": "system", "content": system}, *messages], given + 1 if given else 0
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant" and number >= given]
    if not answers:
        raise RecordError("without an answer", f"no message of the assistant among {len(messages)}: nothing to learn")
    for number in answers:
        message = messages[number]
        if not (message.get("content") or "").strip() and not message.keys() & INSTEAD_OF_CONTENT:
            raise RecordError("empty answer", f"message {number + 1}, of the assistant, is empty")
    return Chat(messages[: answers[-1] + 1], tools, given)


def _messages(value: Any, key: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise RecordError("broken messages", f"'{key}' holds {type(value).__name__}, not a list of messages")
    return [_message(item, number) for number, item in enumerate(value, 1)]


def _message(item: Any, number: int) -> dict[str, Any]:
    """A message with the fields that chat templates know; its content as one text."""
    if not isinstance(item, dict):
        raise RecordError("broken messages", f"message {number} is {type(item).__name__}, not an object")
    fields = {key: value for key, value in item.items() if value is not None and value != []}
    if "role" not in fields and "from" in fields:
        speaker = fields["from"]
        if not isinstance(speaker, str) or speaker not in SPEAKERS:
            raise RecordError("unknown speaker", f"message {number} is from {speaker!r}; known: {', '.join(SPEAKERS)}")
        fields |= {"role": SPEAKERS[speaker], "content": fields.get("value")}
    if not isinstance(fields.get("role"), str):
        raise RecordError("broken messages", f"message {number} has no role; its keys: {', '.join(sorted(item))}")
    if fields.get("weight", 1) != 1:
        raise RecordError("weighted message", f"message {number} has a weight; every answer is learned alike here")
    content = fields.get("content")
    if isinstance(content, list):
        content = "".join(_part(part, number) for part in content)
    if not (isinstance(content, str) or (content is None and fields.keys() & INSTEAD_OF_CONTENT)):
        raise RecordError("broken messages", f"message {number} holds {type(content).__name__} as content, not text")
    return {key: fields[key] for key in MESSAGE_FIELDS if key in fields} | {"content": content}


def _part(part: Any, number: int) -> str:
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part
    if not isinstance(text, str):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise RecordError("not text", f"message {number} has a part of type {kind!r}; only text can be learned")
    return text


def _tools(value: Any) -> list[Any] | None:
    if isinstance(value, str):  # as tables store what differs from row to row
        try:
            value = json.loads(value) if value.strip() else []
        except (ValueError, RecursionError) as error:
            raise RecordError("broken tools", f"'tools' is not valid JSON: {error}") from None
    if not isinstance(value, list):
        raise RecordError("broken tools", f"'tools' holds {type(value).__name__}, not a list")
    return value or None


def _string(found: dict[str, Any], key: str) -> str:
    if not isinstance(found[key], str):
        raise RecordError("not text", f"'{key}' holds {type(found[key]).__name__}, not text")
    return str(found[key])


def _filled(text: str, reason: str, key: str) -> str:
    if not text.strip():
        raise RecordError(reason, f"'{key}' is empty")
    return text
