"""A conversation whose lines come from a script."""

import io
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from cli.scripted_engine import TEMPLATE, ScriptedEngine, write_folder

from micro_runs import Trained
from seqloom.cli.chat import PlainText, Turns
from seqloom.cli.dialogue import Asked
from seqloom.cli.main import main
from seqloom.core.errors import DataError
from seqloom.data.tokenizer import open_tokenizer
from seqloom.serve.config import Sampling
from seqloom.serve.engine import Engine

SHORT = ["--max-tokens", "4", "--temperature", "0"]


def chat(
    folder: Path, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> str:
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    main(["chat", str(folder), *SHORT, *arguments])
    return capsys.readouterr().out.replace("> ", "")


def test_a_base_model_goes_on_with_the_growing_text(
    trained: Trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(trained.folder)
    greedy = Sampling(max_tokens=4, temperature=0)
    first = engine.generate(["def compute"], greedy)[0].text
    second = engine.generate([f"def compute{first}\nreturn"], greedy)[0].text
    shown = chat(trained.folder, "def compute\nreturn\n/reset\nreturn\n/quit\n", capsys, monkeypatch)
    afresh = engine.generate(["return"], greedy)[0].text
    assert shown.split("\n", 1)[1] == f"{first}\n{second}\n{afresh}\n"
    too_long = chat(trained.folder, f"{'9 ' * 99}\nreturn\n/quit\n", capsys, monkeypatch, "--cache-tokens", "64")
    assert too_long.split("\n", 1)[1] == f"{afresh}\n"


def test_the_end_of_input_leaves(
    trained: Trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chat(trained.folder, "", capsys, monkeypatch).endswith("\n")


def test_ctrl_c_stops_an_answer_only(
    scripted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = ScriptedEngine.step

    def step(self: ScriptedEngine) -> list[Any]:
        found = steps(self)
        if self._running[0].usage.completion_tokens == 2:
            signal.raise_signal(signal.SIGINT)
        return found

    monkeypatch.setattr(ScriptedEngine, "step", step)
    shown = chat(scripted, "COUNT{5}\nCOUNT{7}\n", capsys, monkeypatch)
    assert shown.count("1 2 [stopped]") == 2
    assert ScriptedEngine.prompts == ["COUNT{5}", "COUNT{5}1 2\nCOUNT{7}"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_how_fast_the_last_answer_was(
    scripted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = chat(scripted, "/speed\nCOUNT{3}\n/speed\n", capsys, monkeypatch).splitlines()
    assert shown[1] == "nothing was answered yet"
    assert re.fullmatch(r"[\d,.]+ tokens/s, 4 tokens, first after [\d.]+ s, 50% of 6 guesses right", shown[3])


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content is defined %}<think>\n{{ message.reasoning_content }}\n</think>\n{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if thinking %}<think>\n{% endif %}{% endif %}"
)


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a base model whose engine says what it is told."""
    monkeypatch.setattr("seqloom.serve.engine.Engine", ScriptedEngine)
    monkeypatch.setattr(ScriptedEngine, "prompts", [], raising=False)
    return write_folder(tmp_path / "model")


@pytest.fixture
def chatty(scripted: Path) -> Path:
    """The same with a chat template."""
    return write_folder(scripted, CHAT)


def turns(folder: Path, template: str = CHAT, **settings: Any) -> Turns:
    (folder / "chat_template.jinja").write_text(template)
    return Turns(open_tokenizer(folder), **settings)


def spelled(folder: Path, asked: Asked) -> str:
    assert isinstance(asked.prompt, list)
    return open_tokenizer(folder).decode(asked.prompt, specials=True)


def test_a_chat_template_shapes_the_turns(chatty: Path) -> None:
    conversation = turns(chatty, system="be brief")
    conversation.answer("hi", "hello")
    asked = conversation.ask("more", Sampling(thinking_tokens=5))
    assert spelled(chatty, asked) == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\nhello<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n"
    )
    assert asked.sampling == Sampling(thinking_tokens=5, stop_token_ids=(11,))
    assert asked.marks is not None
    assert (asked.marks.think_close, asked.marks.starts_thinking) == ("</think>", False)


def test_thoughts_go_back_as_thoughts(chatty: Path) -> None:
    conversation = turns(chatty, options={"thinking": True})
    for said, thoughts, answer in (("a", "hm\n", "\n\nyes"), ("b", "\nwhy\n", "\nno"), ("c", "cut off in tho", "")):
        asked = conversation.ask(said, Sampling())
        assert spelled(chatty, asked).endswith("<|im_start|>assistant\n<think>\n")
        assert asked.marks is not None
        assert asked.marks.starts_thinking
        conversation.answer(said, answer, thoughts)
    text = spelled(chatty, conversation.ask("d", Sampling()))
    assert "<think>\nhm\n</think>\nyes<|im_end|>" in text
    assert "<think>\nwhy\n</think>\nno<|im_end|>" in text
    assert "<think>\ncut off in tho\n</think>\n<|im_end|>" in text


def test_a_budget_of_nothing_leaves_thoughts_away(chatty: Path) -> None:
    conversation = turns(chatty, TEMPLATE)
    for budget, end in ((None, "<think>\n"), (9, "<think>\n"), (0, "assistant\n")):
        asked = conversation.ask("a", Sampling(thinking_tokens=budget))
        assert spelled(chatty, asked).endswith(end)
        assert asked.sampling.thinking_tokens == budget
    conversation = turns(chatty, "{{ messages[-1].content }}<|im_end|>")  # knows of no thoughts
    assert conversation.ask("a", Sampling(thinking_tokens=9)).sampling.thinking_tokens is None


def test_the_whole_conversation_of_a_chat_model(
    chatty: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "SAY{because </think> yes}"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{said}\n/reset\n{said}\nCOUNT{{1}}\n"))
    main(["chat", str(chatty), "--system", "s", "--template-option", "thinking=true", "--max-tokens", "9"])
    assert "because</think> yes\n" in capsys.readouterr().out
    begin, end = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert ScriptedEngine.prompts == [
        f"{begin}{said}{end}",
        f"{begin}{said}{end}",
        f"{begin}{said}{end}because\n</think>\n yes<|im_end|>\n<|im_start|>user\nCOUNT{{1}}{end}",
    ]


def test_thoughts_are_dimmed_on_a_terminal(
    chatty: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("SAY{because </think> yes}\n"))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    main(["chat", str(chatty), "--template-option", "thinking=true"])
    assert "\x1b[2mbecause\x1b[22m yes" in capsys.readouterr().out


@pytest.mark.parametrize(
    "template",
    ["{% for i in range(10000) %}{% for i in range(10000) %}x{% endfor %}{% endfor %}", "{{ messages[", "{{ f(1) }}"],
)
def test_a_template_that_cannot_be_rendered_is_known_at_once(chatty: Path, template: str) -> None:
    with pytest.raises(DataError, match="the chat template cannot be rendered"):
        turns(chatty, template)


def test_options_that_cannot_be_used(
    scripted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chatty = write_folder(tmp_path / "chatty", CHAT)
    for folder, arguments, words in (
        (scripted, ["--system", "s"], "need a chat template, and this model has none"),
        (scripted, ["--logprobs", "1"], "a conversation shows none"),
        (scripted, ["--template-option", "a=1"], "need a chat template, and this model has none"),
        (chatty, ["--template-option", "thinking"], "expected NAME=VALUE, got 'thinking'"),
        (chatty, ["--template-option", "thinkin=true"], "'thinkin': this chat template does not read it"),
        (chatty, ["--template-option", "messages=[]"], "'messages': comes from the conversation"),
    ):
        with pytest.raises(SystemExit) as left:
            main(["chat", str(folder), *arguments])
        assert left.value.code == 2
        assert words in " ".join(capsys.readouterr().err.split())


def test_plain_text_puts_each_line_of_the_user_on_its_own() -> None:
    text = PlainText()
    text.answer("a", "b\n")
    text.answer("c", "d")
    assert text.ask("e", Sampling()).prompt == "ab\ncd\ne"
