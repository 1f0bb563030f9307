"""From a name to a run folder."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from micro_runs import Trained
from seqloom.cli.display import Display
from seqloom.cli.main import main
from seqloom.core.checkpoint.manifest import verify
from seqloom.core.logs import read_metrics
from seqloom.systems.hybrid_lm.recipes import tiny


def fails(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_piped_training_prints_the_report_and_plain_lines(trained: Trained) -> None:
    assert not any("\x1b" in line or "\r" in line for line in trained.lines)
    report = next(index for index, line in enumerate(trained.lines) if "bytes per token" in line)
    steps = [index for index, line in enumerate(trained.lines) if line.startswith("step ") and "tokens/s" in line]
    assert report < steps[0]
    assert [trained.lines[index].split()[1] for index in steps] == ["1/3", "2/3", "3/3"]
    assert trained.lines[-1].startswith(f"{trained.folder}: trained for 3 steps; ")


def test_run_folder_names_its_settings_and_is_whole(trained: Trained) -> None:
    assert "pattern: M-M*EME" in (trained.folder / "run.yaml").read_text()
    assert [path.name for path in sorted((trained.folder / "steps").iterdir())] == ["00000002", "00000003"]
    assert verify(trained.folder / "latest") == []
    kinds = [(record["kind"], record["step"]) for record in read_metrics(trained.folder / "metrics.jsonl")]
    assert kinds == [("train", 1), ("monitor", 1), ("train", 2), ("train", 3), ("sample", 3), ("valid", 3)]


@pytest.mark.usefixtures("small_recipe")
def test_json_is_one_object_with_the_last_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "hybrid_lm/tiny", "--out", str(tmp_path / "run"), "--train.steps", "2", "--json"])
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert result["folder"] == str(tmp_path / "run")
    assert result["step"] == 2
    assert 0 < result["bits_per_byte"] < 20
    assert "step 2/2" in shown.err


@pytest.mark.usefixtures("small_recipe")
def test_the_default_folder_is_named_after_the_recipe(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more.txt").write_text("a few words more\n" * 50)
    main(["train", "hybrid_lm/tiny", "--train.steps", "1", "--data", f"{texts}=2", "more.txt"])
    report = json.loads((tmp_path / "runs/tiny/data.json").read_text())
    assert [source["source"] for source in report["sources"]] == [str(texts), "more.txt"]


def test_a_finished_run_folder_is_left_as_it_is(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (trained.folder / "steps").rglob("*")}
    main(["train", str(trained.folder)])
    assert {path: path.stat().st_mtime_ns for path in (trained.folder / "steps").rglob("*")} == before
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{trained.folder}: trained for 3 steps; ")


def test_a_folder_with_another_run_is_refused(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    assert fails("train", str(trained.folder), "--train.optimizer.lr", "0.5") == 2
    assert f"train.optimizer.lr: {tiny().train.optimizer.lr} there, 0.5 here" in capsys.readouterr().err


@pytest.mark.usefixtures("small_recipe")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing from seqloom train"),
        (["--data", "x", "hybrid_lm/tiny"], "'hybrid_lm/tiny' must come first"),
        (["hybrid_lm/tinny"], "did you mean 'tiny'?"),
        (["finetune"], "seqloom train finetune --model FOLDER --data FILE"),
        (["finetune", "--model"], "--model"),
        (["finetune", "--model", "nowhere"], "there is no folder nowhere"),
        (["hybrid_lm/tiny", "--trian.steps", "3"], "--train.steps"),
        (["hybrid_lm/tiny", "--train.steps", "many"], "--train.steps"),
        (["hybrid_lm/tiny", "--train.steps", "0"], "train.steps: input should be greater than or equal to 1 (got 0)"),
        (["hybrid_lm/tiny", "--model.pattern", "MXM"], "character 1 of 'MXM' is 'X'"),
        (["hybrid_lm/tiny", "--model.moe.top-k", "9"], "model.moe.top_k: 9 of 4 experts cannot be chosen"),
        (["hybrid_lm/tiny", "--data", "nowhere.txt"], "nowhere.txt: no such file or folder"),
        (["hybrid_lm/tiny", "--data", "x=much"], "'much' is not a weight"),
        (["hybrid_lm/tiny", "--model.vocab-size", "100"], "vocab_size is 100"),
        (["hybrid_lm/tiny", "--task.sequence-length", "100000000"], "GiB"),
        (["hybrid_lm/tiny", "--train.trackers", "wandbb"], "unknown tracker 'wandbb'"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_no_run(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fails("train", *arguments) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert "Traceback" not in shown.err
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.usefixtures("small_recipe")
def test_ctrl_c_saves_and_the_same_command_goes_on_bit_for_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", "hybrid_lm/tiny", "--train.steps", "6", "--train.save-every", "6", "--out"]
    main([*command, str(tmp_path / "whole")])

    def press_ctrl_c(self: Display, metrics: dict[str, float]) -> None:
        if metrics["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Display, "on_step", press_ctrl_c)
        assert fails(*command, str(tmp_path / "cut")) == 130
    assert capsys.readouterr().err == (
        "seqloom: interrupted; step 3 is saved, and the same command goes on from there\n"
    )
    main([*command, str(tmp_path / "cut")])
    assert "going on after step 3" in capsys.readouterr().out
    for name in ("model.safetensors", "optim.safetensors", "rng.safetensors"):
        whole, cut = (tmp_path / folder / "steps/00000006" / name for folder in ("whole", "cut"))
        assert whole.read_bytes() == cut.read_bytes()


CHATML = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture
def base(trained: Trained, tmp_path: Path) -> Path:
    """The run as a model that has a chat template."""
    folder = shutil.copytree(trained.folder, tmp_path / "base", symlinks=True)
    (folder / "chat_template.jinja").write_text(CHATML)
    return folder


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    lines = [
        {"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n}."}]}
        for n in range(60)
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


SMALL = [
    "--task.sequence-length",
    "32",
    "--task.batch-rows",
    "2",
    "--train.steps",
    "2",
    "--task.data.valid-fraction",
    "0.3",
]


def test_a_folder_and_chats_become_adapters_and_then_a_model(
    base: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "finetune", "--model", str(base), "--data", str(chats), "--out", str(tmp_path / "tuned")]
    main([*command, *SMALL, "--adapter.rank", "4"])
    lines = capsys.readouterr().out.splitlines()
    assert f"adapters of rank 4 on {base}" in lines
    table = {line.split()[0]: line for line in lines if " layers, " in line}
    assert "3 of 3 layers" in table["Mamba-2"]
    assert table["Mamba-2"].endswith("numbers: in_proj, out_proj")
    assert "experts.up_proj" in table["mixture"]
    assert "1 of 1 layers" in table["prediction"]
    assert "pattern: M-M*EME" in (tmp_path / "tuned/run.yaml").read_text()

    main([*command, *SMALL, "--adapter.rank", "4", "--train.log-every", "1"])
    assert "already trained to its last step" in capsys.readouterr().out
    main(["generate", str(tmp_path / "tuned"), "What", "--max-tokens", "2"])
    main(["evaluate", str(tmp_path / "tuned"), "--limit", "2"])
    assert "bits per byte" in capsys.readouterr().out
    main(["show", str(tmp_path / "tuned")])
    assert "rank: 4" in capsys.readouterr().out
    main(["merge", str(tmp_path / "tuned"), "--out", str(tmp_path / "merged"), "--json"])
    assert json.loads(capsys.readouterr().out)["folder"] == str(tmp_path / "merged")
    assert (tmp_path / "merged/chat_template.jinja").read_text() == CHATML
    main(["generate", str(tmp_path / "merged"), "What", "--max-tokens", "2"])


def test_all_weights_learn_with_finetune_full(base: Path, chats: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "tuned"), f"--model={base}", "--data", str(chats)]
    main(["train", "finetune_full", *out, *SMALL, "--train.steps", "1"])
    assert (tmp_path / "tuned/model.safetensors").exists()
    assert not (tmp_path / "tuned/adapter.json").exists()


def test_help_shows_the_settings_of_the_folder(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fails("train", "finetune", "--model", str(base), "--help") == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default: 'M-M*EME')" in shown
    assert "(default: 0.0002)" in shown


def test_targets_that_miss_a_kind_of_layers_are_refused(
    base: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "train",
        "finetune",
        "--model",
        str(base),
        "--data",
        str(chats),
        "--out",
        str(tmp_path / "tuned"),
        *SMALL,
    ]
    assert fails(*command, "--adapter.targets", "q_proj", "v_proj") == 2
    assert "0 of 3 Mamba-2 layers would get an adapter" in capsys.readouterr().err
    main([*command, "--adapter.targets", "q_proj", "v_proj", "--adapter.leave-out", "M", "-", "E"])
    assert "0 of 3 layers,           0 numbers: none; untouched: in_proj, out_proj" in capsys.readouterr().out


def test_a_place_that_cannot_hold_a_run_is_named(
    tmp_path: Path, trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert fails("train", str(trained.folder / "run.yaml"), "--out", str(tmp_path / "file/run")) == 2
    assert f"{tmp_path / 'file/run'}: cannot be used for a run" in capsys.readouterr().err
