"""`seqloom serve` from outside: a small hybrid model in an engine's process, the official client, and signals."""

import json
import signal
import subprocess
import sys

import httpx
import pytest
from sample_texts import CODE, PROSE

from seqloom.core.errors import ConfigError
from seqloom.data.tokenizer import TextTokenizer, train_tokenizer
from seqloom.systems.hybrid_lm.server import ServerConfig, serve
from tiny_models import make

TEMPLATE = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking %}<think>
{% else %}<think></think>{% endif %}{% endif %}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("served") / "tiny"
    found.mkdir()
    plain = train_tokenizer([CODE, PROSE], 400)
    make("mtp", vocab_size=400).write_folder(found)
    TextTokenizer(plain.definition, bos=1, eos=2, pad=0, chat_template=TEMPLATE).save(found)
    return found


@pytest.fixture(scope="module")
def running(folder):
    command = [sys.executable, "-m", "seqloom", "serve", str(folder), "--port", "0", "--max-rows", "2",
               "--cache-tokens", "2048", "--threads", "1", "--drain-seconds", "20"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield process, line.split(" at ")[1].split()[0]
        process.kill()


@pytest.mark.full
def test_a_model_is_served_from_end_to_end(running):
    openai = pytest.importorskip("openai")
    _, address = running
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=60) as client:
        greedy = {"model": "tiny", "temperature": 0.0, "max_tokens": 24}
        asked = {**greedy, "messages": [{"role": "user", "content": "It is a truth"}]}
        first = client.chat.completions.create(**asked, logprobs=True)
        again = client.chat.completions.create(**asked, logprobs=True)
        assert again.choices[0] == first.choices[0]  # cached or not, guessed or not: the same bits
        assert first.usage.completion_tokens <= 24
        stream = client.chat.completions.create(**asked, stream=True)
        deltas = [chunk.choices[0].delta for chunk in stream]
        thoughts = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
        assert thoughts == (first.choices[0].message.model_dump().get("reasoning_content") or "")
        closed = client.chat.completions.create(**asked, extra_body={"thinking_tokens": 4})
        assert closed.usage.completion_tokens_details.reasoning_tokens <= 4 + 16 + 3
        schema = {
            "type": "object",
            "properties": {"a": {"enum": [1, 2]}},
            "required": ["a"],
            "additionalProperties": False,
        }
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        off = {"chat_template_kwargs": {"enable_thinking": False}}
        found = client.chat.completions.create(**asked, response_format=form, extra_body=off)
        assert json.loads(found.choices[0].message.content)["a"] in (1, 2)
        ids = [1, 40, 50, 60, 70]
        scored = client.completions.create(model="tiny", prompt=[ids], echo=True, logprobs=1, max_tokens=1)
        assert [one is None for one in scored.choices[0].logprobs.token_logprobs] == [True] + [False] * 5
        with pytest.raises(openai.BadRequestError, match="not a token id"):
            client.completions.create(model="tiny", prompt=[399, 400])
    assert "seqloom_accepted_tokens" in httpx.get(f"{address}/metrics").text


@pytest.mark.full
def test_a_signal_ends_server_and_engine(running):
    process, address = running
    with httpx.stream(
        "POST", f"{address}/v1/completions", json={"prompt": "It", "max_tokens": 100, "stream": True}
    ) as got:
        lines = got.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        assert "[DONE]" in "".join(lines)
    assert process.wait(30) == 0


@pytest.mark.full
def test_what_cannot_be_served_is_said(folder):
    listening = {"host": "127.0.0.1", "port": 0, "key": None}
    with pytest.raises(ConfigError, match="cannot be started: max_rows: 0"):
        serve(folder, **listening, settings=ServerConfig(cache_tokens=256, max_rows=0))
