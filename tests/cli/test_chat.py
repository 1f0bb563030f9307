"""A conversation whose lines come from a script."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from micro_runs import Trained
from seqloom.cli.chat import PlainText, Turns
from seqloom.cli.main import main
from seqloom.core.errors import DataError
from seqloom.data.tokenizer import open_tokenizer
from seqloom.serve.config import Sampling
from seqloom.serve.engine import Engine

SHORT = ["--max-tokens", "4", "--temperature", "0"]


def chat(folder: Path, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    main(["chat", str(folder), *SHORT])
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


def test_the_end_of_input_leaves(
    trained: Trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chat(trained.folder, "", capsys, monkeypatch).endswith("\n")


def test_ctrl_c_stops_an_answer_only(
    trained: Trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[object] = []

    def stream(self: Engine, prompt: object, *settings: object) -> Iterator[str]:
        prompts.append(prompt)
        yield "half an "
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "stream", stream)
    shown = chat(trained.folder, "one\ntwo\n", capsys, monkeypatch)
    assert shown.count("half an  [stopped]") == 2
    assert prompts == ["one", "onehalf an \ntwo"]


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content is defined %}<think>\n{{ message.reasoning_content }}\n</think>\n{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if thinking %}<think>\n{% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def chatty(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model with a chat template."""
    folder = tmp_path_factory.mktemp("chatty") / "model"
    shutil.copytree(trained.folder, folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    return folder


def turns(folder: Path, template: str = CHAT, **settings: Any) -> Turns:
    (folder / "chat_template.jinja").write_text(template)
    tokenizer = open_tokenizer(folder)
    assert tokenizer.template is not None
    return Turns(tokenizer, tokenizer.template, **settings)


def spelled(folder: Path, prompt: Any) -> str:
    return open_tokenizer(folder).decode(prompt, specials=True)


def test_a_chat_template_shapes_the_turns(chatty: Path) -> None:
    conversation = turns(chatty, system="be brief")
    conversation.say("hi")
    conversation.answer("hello")
    conversation.say("more")
    assert spelled(chatty, conversation.prompt()) == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\nhello<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n"
    )


def test_thoughts_go_back_as_thoughts(chatty: Path) -> None:
    conversation = turns(chatty, options={"thinking": True})
    for said, answer in (("a", "hm\n</think>\n\nyes"), ("b", "<think>\nwhy\n</think>\nno"), ("c", "cut off in tho")):
        conversation.say(said)
        assert spelled(chatty, conversation.prompt()).endswith("<|im_start|>assistant\n<think>\n")
        conversation.answer(answer)
    text = spelled(chatty, conversation.prompt())
    assert "<think>\nhm\n</think>\nyes<|im_end|>" in text
    assert "<think>\nwhy\n</think>\nno<|im_end|>" in text
    assert "<think>\ncut off in tho\n</think>\n<|im_end|>" in text


def test_an_answer_ends_with_its_turn_and_shows_its_thoughts(chatty: Path) -> None:
    answers = turns(chatty).answers
    tokenizer = open_tokenizer(chatty)
    assert (answers.eos, answers.bos, answers.size) == (11, tokenizer.bos, tokenizer.size)
    ids = tokenizer.encode("<|im_start|>why</think>yes<|im_end|>", specials=True)
    assert answers.decode(ids) == "why</think>yes"
    assert answers.encode("<think>") == tokenizer.encode("<think>")


def test_the_whole_conversation_of_a_chat_model(
    chatty: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (chatty / "chat_template.jinja").write_text(CHAT)
    prompts: list[str] = []

    def stream(self: Engine, prompt: Any, *settings: object) -> Iterator[str]:
        prompts.append(spelled(chatty, prompt))
        assert self.tokenizer.eos == 11
        yield "because</think>"
        yield "yes"

    monkeypatch.setattr(Engine, "stream", stream)
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n/reset\ntwo\nthree\n"))
    main(["chat", str(chatty), "--system", "s", "--template-option", "thinking=true", *SHORT])
    assert "because</think>yes\n" in capsys.readouterr().out
    begin, end = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert prompts == [
        f"{begin}one{end}",
        f"{begin}two{end}",
        f"{begin}two{end}because\n</think>\nyes<|im_end|>\n<|im_start|>user\nthree{end}",
    ]


@pytest.mark.parametrize(
    "template",
    ["{% for i in range(10000) %}{% for i in range(10000) %}x{% endfor %}{% endfor %}", "{{ messages[", "{{ f(1) }}"],
)
def test_a_template_that_cannot_be_rendered_is_known_at_once(chatty: Path, template: str) -> None:
    with pytest.raises(DataError, match="the chat template cannot be rendered"):
        turns(chatty, template)


def test_options_that_cannot_be_used(
    trained: Trained, chatty: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (chatty / "chat_template.jinja").write_text(CHAT)
    for folder, arguments, words in (
        (trained.folder, ["--system", "s"], "need a chat template, and this model has none"),
        (trained.folder, ["--template-option", "a=1"], "need a chat template, and this model has none"),
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
    text.say("a")
    text.answer("b\n")
    text.say("c")
    text.answer("d")
    text.say("e")
    assert text.prompt() == "ab\ncd\ne"
