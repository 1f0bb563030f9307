"""A conversation whose lines come from a script."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from micro_runs import Trained
from seqloom.cli.chat import PlainText, Turns
from seqloom.cli.main import main
from seqloom.core.errors import CheckpointError
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


def test_a_chat_template_shapes_the_turns(trained: Trained) -> None:
    tokenizer = open_tokenizer(trained.folder)
    turns = Turns(
        tokenizer,
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    )
    turns.say("hi")
    turns.answer("hello")
    turns.say("more")
    text = tokenizer.decode(turns.prompt(), specials=True)
    assert text == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n"
        "<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("template", ["{% for i in range(100000000) %}x{% endfor %}", "{{ messages[", "{{ f(1) }}"])
def test_a_template_that_cannot_be_rendered_is_an_error_of_the_folder(trained: Trained, template: str) -> None:
    turns = Turns(open_tokenizer(trained.folder), template)
    turns.say("hi")
    with pytest.raises(CheckpointError, match="chat template"):
        turns.prompt()


def test_plain_text_puts_each_line_of_the_user_on_its_own() -> None:
    text = PlainText()
    text.say("a")
    text.answer("b\n")
    text.say("c")
    text.answer("d")
    text.say("e")
    assert text.prompt() == "ab\ncd\ne"
