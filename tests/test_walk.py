"""The walk of docs/published_models.md, done as its reader does it: a folder made by transformers comes back to it."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from seqloom.cli.main import main

PAGE = Path(__file__).parents[1] / "docs" / "published_models.md"


@pytest.mark.full
@pytest.mark.timeout(300)
def test_the_walk_works_from_the_page_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    walk = PAGE.read_text(encoding="utf-8").split("## The walk")[1].split("\n## ")[0]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", walk, flags=re.MULTILINE | re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python", "", "", "", "", "", "python"]
    conversations = [
        [{"role": "user", "content": f"{n} and {n}?"}, {"role": "assistant", "content": str(2 * n)}] for n in range(40)
    ]
    Path("my.jsonl").write_text("\n".join(json.dumps({"messages": messages}) for messages in conversations))

    scope: dict[str, object] = {}
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, str(PAGE), "exec"), scope)
            continue
        for line in block.strip().splitlines():
            command, *arguments = shlex.split(line)
            assert command == "seqloom"
            main(arguments)
    shown = capsys.readouterr().out
    assert "bit for bit" in shown
    assert "logits differ by" in shown
    assert isinstance(scope["model"], transformers.NemotronHForCausalLM)
    assert scope["model"].dtype == torch.bfloat16
    assert scope["tokenizer"].chat_template  # type: ignore[attr-defined]
