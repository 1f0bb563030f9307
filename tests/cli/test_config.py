import json

import pytest

from seqloom.cli.main import main


def test_schema_describes_a_run_file(capsys: pytest.CaptureFixture[str]) -> None:
    main(["config", "schema", "hybrid_lm"])
    schema = json.loads(capsys.readouterr().out)
    assert {"model", "task", "train", "precision", "seed"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False


def test_unknown_system_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["config", "schema", "hybird_lm"])
    assert stop.value.code == 2
    assert "unknown system 'hybird_lm'; known: attention_agent, deep_speech2, hybrid_lm" in capsys.readouterr().err
