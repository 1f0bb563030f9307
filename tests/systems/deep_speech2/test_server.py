"""The server from outside: protocol, limits, formats, and that nobody's misbehaviour is another's trouble."""

import asyncio
import io
import json
import time
import wave

import numpy as np
import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from seqloom.core.errors import ConfigError
from seqloom.systems.deep_speech2.conversation import WAITING_FINALS, Outbox, RefusedError
from seqloom.systems.deep_speech2.dispatch import Ended, Final, Partial
from seqloom.systems.deep_speech2.endpoint import EndpointConfig
from seqloom.systems.deep_speech2.server import application
from seqloom.systems.deep_speech2.service import ServerConfig, Service
from seqloom.systems.deep_speech2.stream import Stream, StreamingModel
from seqloom.systems.deep_speech2.transcribe import Recogniser
from seqloom.systems.deep_speech2.transcript import Segment
from speech_samples import untrained
from streaming_speech import SMALL, excited, listener, sound

STREAM = "/v1/audio/stream"
FILES = "/v1/audio/transcriptions"
KEY = "a-key-that-nobody-guesses"


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "small"
    folder.mkdir()
    excited(SMALL).write_folder(folder)
    return Recogniser(folder)


def client(recogniser, key=None, **settings):
    service = Service(recogniser, "small", ServerConfig(**settings))
    return TestClient(application(service, key), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def server(recogniser):
    with client(recogniser, idle_seconds=20.0) as found:
        yield found


def pcm(samples):
    return (np.clip(samples.numpy(), -1, 1) * 32767).astype("<i2").tobytes()


def wav(samples):
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16000)
        out.writeframes(pcm(samples))
    return file.getvalue()


def spoken(recogniser, samples):
    """What a stream alone hears of the same sound, after it was made 16 bits."""
    model = StreamingModel(recogniser.model)
    stream = Stream(model, listener(model, EndpointConfig()))
    stream.accept((samples * 32767).trunc() / 32768)
    return stream.finish()


def talk(socket, samples, piece=1600, rate=16000):
    socket.send_json({"type": "start", "sample_rate": rate})
    for part in samples.split(piece):
        socket.send_bytes(pcm(part))
    socket.send_json({"type": "end"})
    return rest(socket)


def rest(socket):
    messages = []
    while not messages or messages[-1]["type"] not in ("end", "error"):
        messages.append(socket.receive_json())
    with pytest.raises(WebSocketDisconnect) as closed:
        socket.receive_json()
    return messages, closed.value.code


def test_a_stream_gets_partial_and_final_texts(server, recogniser):
    samples = sound(1.3)
    with server.websocket_connect(STREAM) as socket:
        messages, code = talk(socket, samples)
    wanted = spoken(recogniser, samples)
    finals = [one for one in messages if one["type"] == "final"]
    assert " ".join(one["text"] for one in finals) == wanted.text
    assert [word["start"] for one in finals for word in one["words"]] == [word.start for word in wanted.words]
    assert messages[0]["type"] == "partial"
    assert messages[-1] == {"type": "end", "seconds": 1.3}
    assert code == 1000


@pytest.mark.parametrize(
    ("sent", "code", "status"),
    [
        ([b"\0\0"], "protocol", 1008),
        ([{"type": "end"}], "protocol", 1008),
        (["no json"], "protocol", 1008),
        ([{"type": "begin"}], "protocol", 1008),
        ([{"type": "start", "sample_rate": 123}], "protocol", 1008),
        ([{"type": "start", "samplerate": 16000}], "protocol", 1008),
        ([{"type": "start"}, {"type": "start"}], "protocol", 1008),
        ([{"type": "start"}, b"\0"], "protocol", 1008),
        ([{"type": "start"}, b"\0" * 70_000], "too_large", 1009),
        ([{"type": "start"}, b"\0" * 60_000], "backlog", 1008),
        ([{"type": "start"}], "idle", 1008),
    ],
)
def test_who_breaks_the_rules_loses_the_stream_and_no_one_else(recogniser, sent, code, status):
    settings = {"max_message_bytes": 65_000, "backlog_seconds": 1.0, "idle_seconds": 0.15 if code == "idle" else 20.0}
    with client(recogniser, **settings) as server, server.websocket_connect(STREAM) as good:
        good.send_json({"type": "start"})
        good.send_bytes(pcm(sound(0.4)))
        with server.websocket_connect(STREAM) as socket:
            for message in sent:
                if isinstance(message, dict):
                    socket.send_json(message)
                elif isinstance(message, str):
                    socket.send_text(message)
                else:
                    socket.send_bytes(message)
            messages, closed = rest(socket)
            assert messages[-1]["code"] == code
            assert closed == status
        if code != "idle":
            good.send_json({"type": "end"})
            messages, closed = rest(good)
            assert messages[-1] == {"type": "end", "seconds": 0.4}
            assert closed == 1000
            assert f'refused_total{{reason="{code}"}} 1.0' in server.get("/metrics").text


def test_texts_that_are_not_taken_stay_bounded():
    async def check():
        outbox = Outbox()
        for number in range(1000):
            outbox.put(Partial(str(number)))
        assert await outbox.get() == Partial("999")
        segment = Segment("a", 0.0, 1.0, 1.0)
        outbox.put(Partial("a"))
        outbox.put(Final(segment))
        outbox.put(Ended(1.0))
        assert [await outbox.get() for _ in range(2)] == [Final(segment), Ended(1.0)]
        for _ in range(WAITING_FINALS + 1):
            outbox.put(Final(segment))
        with pytest.raises(RefusedError, match="not taken"):
            await outbox.get()

    asyncio.run(check())


def test_more_streams_than_allowed_are_refused(recogniser):
    with client(recogniser, max_streams=1) as server:
        with server.websocket_connect(STREAM) as first:
            first.send_json({"type": "start"})
            first.send_bytes(pcm(sound(0.3)))
            assert first.receive_json()["type"] == "partial"  # it is under way
            with server.websocket_connect(STREAM) as second:
                second.send_json({"type": "start"})
                assert rest(second)[0][0]["code"] == "busy"
            answer = server.post(FILES, files={"file": wav(sound(0.3))})
            assert answer.status_code == 429
            first.send_json({"type": "end"})
            rest(first)
        until = time.monotonic() + 5
        while "active_streams 0.0" not in server.get("/metrics").text:  # one that left makes room
            assert time.monotonic() < until
        assert server.post(FILES, files={"file": wav(sound(0.3))}).status_code == 200


def test_recordings_in_every_format(server, recogniser):
    samples = sound(1.7)
    wanted, file = spoken(recogniser, samples), {"file": ("a talk.wav", wav(samples))}
    answers = {
        form: server.post(FILES, files=file, data={"model": "small", "response_format": form, "language": "en"})
        for form in ("json", "text", "srt", "vtt", "verbose_json")
    }
    assert all(answer.status_code == 200 for answer in answers.values())
    assert answers["json"].json() == {"text": wanted.text}
    assert "ignored" in answers["json"].headers["x-note"]
    assert answers["text"].text == wanted.text + "\n"
    assert answers["vtt"].text.startswith("WEBVTT")
    assert " --> " in answers["srt"].text
    verbose = answers["verbose_json"].json()
    assert verbose["duration"] == 1.7
    assert [word["word"] for word in verbose["words"]] == [word.text for word in wanted.words]


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ({"files": {"file": b"no sound"}}, 400, "not a recording"),
        ({"files": {"file": wav(sound(0.1))}, "data": {"response_format": "xml"}}, 400, "allowed: json"),
        ({"files": {"file": wav(sound(0.1))}, "data": {"model": "whisper-1"}}, 404, "served: small"),
        ({"data": {"model": "small"}}, 400, "file"),
        ({"files": {"file": wav(sound(0.1)) + b"\0" * 70_000}}, 413, "longer than"),
        ({"content": (b"x" * 1000 for _ in range(70)), "headers": {"content-type": "multipart/form-data; boundary=b"}},
         413, "longer than"),
    ],
)  # fmt: skip
def test_bad_requests_get_errors_in_the_shape_of_openai(recogniser, request_, status, message):
    with client(recogniser, max_file_bytes=65_000) as server:
        answer = server.post(FILES, **request_)
        assert answer.status_code == status
        assert message in answer.json()["error"]["message"]


def test_watchdogs_and_meters(server):
    assert server.get("/health").json() == {"status": "ok"}
    assert server.get("/ready").status_code == 200
    assert server.get("/v1/models").json()["data"][0]["id"] == "small"
    server.post(FILES, files={"file": wav(sound(0.5))})
    text = server.get("/metrics").text
    for name in ("batch_streams_bucket", "queue_seconds_sum", "active_streams", "real_time_factor", "final_latency"):
        assert f"seqloom_speech_{name}" in text
    assert server.get("/ready", headers={"host": "evil.example"}).status_code == 400


def test_a_key_is_asked_of_everyone(recogniser):
    with client(recogniser, key=KEY) as server:
        assert server.get("/health").status_code == 200
        assert server.get("/v1/models").status_code == 401
        assert server.get("/v1/models", headers={"authorization": "Bearer wrong"}).json()["error"]["code"] == 401
        right = {"authorization": f"Bearer {KEY}"}
        assert server.get("/v1/models", headers=right).status_code == 200
        with pytest.raises(WebSocketDisconnect), server.websocket_connect(STREAM):
            pass
        with server.websocket_connect(STREAM, headers=right) as socket:
            assert talk(socket, sound(0.1))[1] == 1000


def test_a_search_serves_as_well(recogniser):
    with client(recogniser, beam=4) as server:
        assert json.loads(server.post(FILES, files={"file": wav(sound(0.5))}).text)["text"]


def test_a_model_that_hears_the_future_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="an4_streaming"):
        Service(Recogniser(untrained(tmp_path / "both")), "both", ServerConfig())
