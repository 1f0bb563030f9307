"""`seqloom serve` as a process and `seqloom listen` as its client; what is refused before anything is loaded."""

import os
import re
import signal
import subprocess
import sys

import pytest

from seqloom.cli import listen, serve
from seqloom.cli.serve import read_key
from seqloom.core.errors import ConfigError, SeqloomError
from streaming_speech import excited, sound
from tiny_speech import write_wav

KEY = "a-key-that-nobody-guesses"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "small"
    folder.mkdir()
    excited().write_folder(folder)
    return folder


def refusal(verb, *arguments):
    with pytest.raises(SeqloomError) as refused:
        verb.main([str(argument) for argument in arguments])
    return str(refused.value)


def test_other_machines_need_a_key(tmp_path):
    file = tmp_path / "key"
    with pytest.raises(ConfigError, match="name a --key-file"):
        read_key("0.0.0.0", None)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_key("127.0.0.1", file)
    file.write_text("short\n")
    with pytest.raises(ConfigError, match="at least 16"):
        read_key("127.0.0.1", file)
    file.write_text(KEY + "\n")
    assert read_key("0.0.0.0", file) == KEY
    assert [read_key(host, None) for host in ("localhost", "127.0.0.1", "::1")] == [None] * 3


def test_what_cannot_be_served_is_said(run, tmp_path):
    assert "name a --key-file" in refusal(serve, run, "--host", "0.0.0.0")
    assert "max_batch" in refusal(serve, run, "--max-batch", 0)
    assert "does not exist" in refusal(serve, tmp_path / "none")
    (tmp_path / "config.json").write_text('{"model_type": "seqloom_attention_agent"}')
    assert "served are those of: deep_speech2, hybrid_lm" in refusal(serve, tmp_path)
    assert "no speech server answers" in refusal(listen, "talk.wav", "--url", "ws://127.0.0.1:9/v1/audio/stream")


@pytest.mark.full
def test_a_recording_goes_through_a_real_server(run, tmp_path, capsys):
    (tmp_path / "key").write_text(KEY)
    write_wav(tmp_path / "talk.wav", sound(0.8).numpy())
    program = "import sys; from seqloom.cli.serve import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, str(run), "--port", "0", "--key-file", str(tmp_path / "key")]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    try:
        assert server.stdout is not None
        port = re.search(r":(\d+) ", server.stdout.readline()).group(1)
        url = f"ws://127.0.0.1:{port}/v1/audio/stream"
        listen.main([str(tmp_path / "talk.wav"), "--url", url, "--key-file", str(tmp_path / "key")])
        assert capsys.readouterr().out.strip()
        assert "403" in refusal(listen, tmp_path / "talk.wav", "--url", url)
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=30)
    assert server.returncode in (0, -signal.SIGINT)
