"""An engine whose answers the prompts tell (see `serve.http.fake_engine`), with what the command line asks for."""

from pathlib import Path
from typing import Any

from sample_texts import CODE
from serve.http.fake_engine import FakeEngine

from seqloom.data.tokenizer import TextTokenizer, open_tokenizer, train_tokenizer

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content is defined %}<think>\n{{ message.reasoning_content }}\n</think>\n{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking %}<think>\n{% endif %}{% endif %}"
)


class ScriptedEngine(FakeEngine):
    """
    Attributes:
        prompts: what was asked of any of them, spelled out; emptied by each test.
    """

    max_rows = 2
    prompts: list[str]

    def __init__(self, folder: Path, **_: Any) -> None:
        self.tokenizer: TextTokenizer = open_tokenizer(folder)
        super().__init__(self.tokenizer, rows=self.max_rows)

    def submit(self, prompt: str | list[int], *settings: Any) -> Any:
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        self.prompts.append(self.tokenizer.decode(ids, specials=True))
        return super().submit(ids, *settings)


def write_folder(folder: Path, template: str | None = None) -> Path:
    """A model folder as far as the scripted engine reads it."""
    plain = train_tokenizer([CODE], 320)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    TextTokenizer(plain.definition, bos=None, eos=2, pad=0, chat_template=template).save(folder)
    return folder
