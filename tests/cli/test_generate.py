import io
import json
from pathlib import Path

import pytest

from micro_runs import Trained
from seqloom.cli.main import main

GREEDY = ["--max-tokens", "6", "--temperature", "0"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(["generate", *arguments])
    return capsys.readouterr().out


def test_stream_batch_and_draft_give_the_same_text(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(trained.folder)
    streamed = run(capsys, folder, "def compute", *GREEDY)
    found = json.loads(run(capsys, folder, "def compute", "return", *GREEDY, "--json", "--logprobs", "1"))
    assert [answer["prompt"] for answer in found["completions"]] == ["def compute", "return"]
    assert found["completions"][0]["text"] + "\n" == streamed
    answer = found["completions"][0]
    for token, (logprob, likeliest) in zip(answer["token_ids"], answer["logprobs"], strict=True):
        assert [[token, logprob]] == likeliest
    assert run(capsys, folder, "def compute", *GREEDY, "--draft-tokens", "2") == streamed
    both = run(capsys, folder, "def compute", "return", *GREEDY)
    assert both.startswith(f"--- def compute\n{streamed}--- return\n")


def test_weights_and_states_in_fewer_bits(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    states = "--kv-cache", "fp8", "--ssm-state", "int8_sr"
    narrow = str(trained.folder), "def compute", *GREEDY, "--weights", "int8", *states
    assert run(capsys, *narrow, "--draft-tokens", "2") == run(capsys, *narrow) != ""


def test_same_seed_same_text(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (str(trained.folder), "--max-tokens", "12", "--seed")
    first, again, other = (run(capsys, *arguments, seed) for seed in ("5", "5", "6"))
    assert first == again != other


def test_a_prompt_from_standard_input(
    trained: Trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("def compute"))
    assert run(capsys, str(trained.folder), "-", *GREEDY) == run(capsys, str(trained.folder), "def compute", *GREEDY)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere: not a model or run folder"),
        (["{run}", "--temperature", "-1"], "temperature: -1.0 is not allowed"),
        (["{run}", "--top-p", "0"], "top_p: 0.0 is not allowed"),
        (["{run}", "--max-tokens", "few"], "--max-tokens"),
        (["{run}", "--logprobs", "1"], "plain text shows none; add --json"),
        (["{run}", "9 " * 99, "--cache-tokens", "1"], "give it more cache_tokens"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str], said: str, trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["generate", *(part.format(run=trained.folder) for part in arguments)])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_a_damaged_model_is_named(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((trained.folder / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes((trained.folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(SystemExit) as stop:
        main(["generate", str(tmp_path), "x"])
    assert stop.value.code == 2
    assert "model.safetensors" in capsys.readouterr().err
