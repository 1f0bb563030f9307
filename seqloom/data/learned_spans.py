"""Which characters of a rendered conversation an assistant wrote.

A template does not say where its answers begin and end, so it is asked by further renderings, and never by searching
the text for the words of a role. Three ways, in this order:

    its own      it has {% generation %} blocks
    prefix       the text begins with the prompt of the answer and with the conversation that ends with the answer:
                 what the second has more than the first was written by the assistant
    probe        the template writes earlier answers differently from the last one. The message is rendered with a
                 probe in place of its content; text before and after the probe stay where they are, and before the
                 content must stand the prompt of an answer, after it the mark that ends one

If none of them fits exactly, the conversation is refused. What the prompt gives, such as `<think>` or an empty block of
thoughts, is not learned; the mark that ends the answer is, and what the template writes after it is not
(post-training spec sections 2.1, 2.2).
"""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import groupby

from seqloom.core.errors import DataError
from seqloom.data.messages import PROBE
from seqloom.data.template_program import Conversation, Message, Span


def find(conversation: Conversation, given: int) -> tuple[str, list[Span]]:
    """The text, and the places of all answers but those among the first `given` messages.

    Raises:
        DataError: an answer whose place cannot be told exactly.
    """
    if conversation.program.marks_answers:
        text, spans = conversation.marked()
        skipped = len(conversation.upto(given).marked()[1]) if given else 0
        return text, spans[skipped:]
    text = conversation.render()
    return text, [_place(conversation, text, number) for number in _answers(conversation, given)]


def turns(conversation: Conversation, given: int) -> list[tuple[Conversation, int]]:
    """The conversations to learn from in place of one, and how many messages of each are only read."""
    text = conversation.render()
    answers = _answers(conversation, given)
    if all(_written(conversation.upto(number + 1), text) is not None for number in answers):
        return [(conversation, given)]
    questions = [number for number, message in enumerate(conversation.messages) if message["role"] == "user"]
    parts = []
    for question, group in groupby(answers, lambda answer: max((q for q in questions if q < answer), default=-1)):
        parts.append((conversation.upto(max(group) + 1), max(given, question + 1)))
    return parts


def _answers(conversation: Conversation, given: int) -> list[int]:
    return [
        number
        for number, message in enumerate(conversation.messages)
        if message["role"] == "assistant" and number >= given
    ]


def _place(conversation: Conversation, text: str, number: int) -> Span:
    found = _by_prefix(conversation, text, number) or _by_probe(conversation, text, number)
    if found is None:
        raise DataError(
            f"messages[{number}]: around this answer the chat template writes something else than when a model gives "
            "it, so what is to be learned cannot be told exactly; thoughts that the prompt asks for may be missing"
        )
    return found


def _by_prefix(conversation: Conversation, text: str, number: int) -> Span | None:
    answered = _written(conversation.upto(number + 1), text)
    if answered is None:
        return None
    for prompt in conversation.upto(number).prompts():
        if answered.startswith(prompt) and len(answered) > len(prompt):
            return len(prompt), len(answered)
    return None


def _written(conversation: Conversation, text: str) -> str | None:
    """The conversation up to the mark that ends its last answer, if the text begins with it."""
    answered = conversation.text()
    if answered is None:
        return None
    prompt = next(conversation.upto(len(conversation.messages) - 1).prompts(), "")
    answered = answered[: _end(conversation, answered, _shared(prompt, answered))]
    return answered if text.startswith(answered) else None


def _shared(first: str, second: str) -> int:
    """How many characters two texts have in common at their beginning."""
    return bisect_left(range(1, min(len(first), len(second)) + 1), True, key=lambda n: first[:n] != second[:n])


def _end(conversation: Conversation, text: str, start: int = 0) -> int:
    """Where the answer that begins at `start` ends: with the mark, or else with the last character but white space."""
    mark = conversation.program.stop_mark
    if mark == "":
        raise DataError(
            "the chat template writes nothing after an answer that would end it, so a model could not learn to stop"
        )
    found = text.rfind(mark, start) if mark else -1
    return found + len(mark) if mark and found >= 0 else len(text.rstrip())


def _by_probe(conversation: Conversation, text: str, number: int) -> Span | None:
    probed = _probed(conversation.messages[number])
    if probed is None:
        return None
    before, after = conversation.messages[:number], conversation.messages[number + 1 :]
    whole = _split(conversation, [*before, probed, *after])
    if whole is None or len(whole[0]) + len(whole[1]) > len(text):
        return None
    first, last = len(whole[0]), len(text) - len(whole[1])
    if not (text.startswith(whole[0]) and text.endswith(whole[1])):
        return None
    message = conversation.messages[number]
    for last_probed, last_message in ((probed, message), (_without_thoughts(probed), _without_thoughts(message))):
        alone = _split(conversation, [*before, last_probed])
        if alone is None or _rendered(conversation, [*before, last_message]) != text[first:last].join(alone):
            continue  # the content itself is written differently as the last one
        tail = alone[1][: _end(conversation, alone[1])]
        if not tail.strip() or not text.startswith(tail, last):
            continue
        for opening, answered in _openings(conversation.upto(number), alone[0]):
            if text.endswith(opening, 0, first):
                return first - answered, last + len(tail)
    return None


def _openings(before: Conversation, alone: str) -> Iterator[tuple[str, int]]:
    """What may stand before the content of an answer, and how many characters at its end were answered already."""
    text = before.text()
    for prompt in before.prompts():
        if text is not None and prompt.startswith(text) and len(prompt) > len(text):
            opening = prompt[len(text) :]
            if alone.startswith(prompt):
                yield opening + alone[len(prompt) :], len(alone) - len(prompt)
            yield opening, 0


def _probed(message: Message) -> Message | None:
    """A message with the probe in place of its content or, if it has none, of the name of the first call."""
    content, calls = message.get("content"), message.get("tool_calls")
    if isinstance(content, str) and content.strip():
        return {**message, "content": PROBE}
    if isinstance(content, list) and content:
        return {**message, "content": [{"type": "text", "text": PROBE}]}
    if calls and "function" in calls[0]:
        function = {**calls[0]["function"], "name": PROBE}
        return {**message, "tool_calls": [{**calls[0], "function": function}, *calls[1:]]}
    if calls:
        return {**message, "tool_calls": [{**calls[0], "name": PROBE}, *calls[1:]]}
    return None


def _without_thoughts(message: Message) -> Message:
    return {key: value for key, value in message.items() if key not in ("reasoning_content", "thinking")}


def _split(conversation: Conversation, messages: list[Message]) -> tuple[str, str] | None:
    """The text before and after the probe; None if it is not there once."""
    parts = (_rendered(conversation, messages) or "").split(PROBE)
    return (parts[0], parts[1]) if len(parts) == 2 else None


def _rendered(conversation: Conversation, messages: list[Message]) -> str | None:
    """The text of these messages; None if the template refuses them."""
    try:
        return conversation.render(messages=messages)
    except DataError:
        return None
