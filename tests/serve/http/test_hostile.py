"""Requests that nobody well-meaning sends get an error of theirs, never one of ours."""

import json
import re
import socket
import time

import httpx
import pytest
from serve.http.front import serving

CHAT = "/v1/chat/completions"
KEY = "a-key-that-nobody-guesses"
USER = '{"role": "user", "content": "SAY{a}"}'
DEEP = '{"a":' * 500 + "1" + "}" * 500


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server.address) as found:
        yield found


BODIES = {
    "nothing": "",
    "no json": "{",
    "not utf-8": b'{"messages": [{"role": "user", "content": "\xff"}]}',
    "a list": "[]",
    "nan": f'{{"messages": [{USER}], "temperature": NaN}}',
    "infinity": f'{{"messages": [{USER}], "temperature": Infinity}}',
    "nan in a schema": f'{{"messages": [{USER}], "metadata": {{"a": NaN}}, "temperature": -1}}',
    "huge number": f'{{"messages": [{USER}], "seed": {"9" * 5000}}}',
    "huge float": f'{{"messages": [{USER}], "temperature": 1e999}}',
    "seed too large": f'{{"messages": [{USER}], "seed": {1 << 70}}}',
    "half a character": '{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "half a character as key": f'{{"messages": [{USER}], "\\udc00": 1}}',
    "nested lists": f'{{"messages": {"[" * 100_000}{"]" * 100_000}}}',
    "nested schema": f'{{"messages": [{USER}], "metadata": {DEEP}}}',
    "deep messages": f'{{"messages": [{{"role": "user", "content": "a", "tool_calls": {"[" * 60}{"]" * 60}}}]}}',
    "true for a number": f'{{"messages": [{USER}], "max_tokens": true}}',
    "text for a number": f'{{"messages": [{USER}], "max_tokens": "5"}}',
    "unknown field": f'{{"messages": [{USER}], "tempereture": 1}}',
    "unknown role": '{"messages": [{"role": 5, "content": "a"}]}',
    "no messages": '{"messages": []}',
    "stored": f'{{"messages": [{USER}], "store": true}}',
    "audio": f'{{"messages": [{USER}], "modalities": ["audio"]}}',
    "odd bias": f'{{"messages": [{USER}], "logit_bias": {{"\\u0663": 1}}}}',
    "same bias twice": f'{{"messages": [{USER}], "logit_bias": {{"1": 1, "01": 2}}}}',
    "option that is not read": f'{{"messages": [{USER}], "chat_template_kwargs": {{"messages": "x"}}}}',
    "option that is a list": f'{{"messages": [{USER}], "chat_template_kwargs": {{"enable_thinking": []}}}}',
    "two forms": f'{{"messages": [{USER}], "structured_outputs": {{"regex": "a", "choice": ["b"]}}}}',
    "a schema without one": f'{{"messages": [{USER}], "response_format": {{"type": "json_schema"}}}}',
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies(http, name):
    body = BODIES[name]
    answer = http.post(CHAT, content=body if isinstance(body, bytes) else body.encode())
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert len(answer.text) < 2000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": ""}),
        ("/v1/completions", {"prompt": []}),
        ("/v1/completions", {"prompt": [[]]}),
        ("/v1/completions", {"prompt": [-1]}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 0}),
        ("/v1/completions", {"prompt": "a", "best_of": 2}),
        ("/v1/completions", {"prompt": "a", "suffix": "b"}),
        ("/v1/responses", {"input": [{"type": "computer_call"}]}),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
        ("/v1/responses", {"input": "a", "previous_response_id": "resp_1"}),
        ("/v1/responses", {"input": "a", "tools": [{"type": "web_search"}]}),
        ("/tokenize", {}),
        ("/detokenize", {"tokens": [1 << 29]}),
    ],
)
def test_other_bodies(http, path, body):
    if path == "/v1/completions" and body == {"prompt": ""}:
        assert http.post(path, json=body).status_code == 200  # the beginning of a text is a prompt
    else:
        assert http.post(path, json=body).status_code == 400


def test_paths_and_methods(http):
    for method, path, status in (("GET", "/nowhere", 404), ("PUT", CHAT, 405), ("GET", "/v1/models/other", 404)):
        answer = http.request(method, path)
        assert answer.status_code == status
        assert answer.json()["error"]["message"]
    told = http.request("HEAD", "/health")
    assert (told.status_code, told.content) == (200, b"")


@pytest.mark.parametrize(
    ("path", "body", "param", "told"),
    [
        ("/v1/responses", {"input": "a", "tools": [{"type": "web_search"}]}, "tools.0.type", "'function'"),
        (CHAT, {"messages": [{}], "tools": [{"type": "custom", "custom": {}}]}, "tools.0.type", "'function'"),
        ("/v1/completions", {"prompt": ["a"] * 5000}, "prompt", "1024 items"),
        (CHAT, {"messages": [{}], "tool_choice": {"type": "function"}}, "tool_choice.function", "required"),
    ],
)
def test_the_message_names_what_is_wrong(http, path, body, param, told):
    error = http.post(path, json=body).json()["error"]
    assert error["param"] == param
    assert told in error["message"]


def test_text_and_tokens(http):
    text = "wide 東京"
    ids = http.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()["tokens"]
    assert http.post("/detokenize", json={"tokens": ids}).json() == {"prompt": text}
    asked = http.post("/tokenize", json={"messages": [{"role": "user", "content": "hi"}]}).json()
    assert asked["count"] == len(asked["tokens"])
    assert "assistant" in http.post("/detokenize", json={"tokens": asked["tokens"]}).json()["prompt"]


def test_the_description_tells_every_body(http):
    openapi = http.get("/openapi.json").json()
    for path in (CHAT, "/v1/completions", "/v1/responses", "/v1/responses/input_tokens", "/tokenize", "/detokenize"):
        described = openapi["paths"][path]["post"]
        name = described["requestBody"]["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
        assert openapi["components"]["schemas"][name]["additionalProperties"] is False
        assert {"400", "429", "503"} <= set(described["responses"])
    text = json.dumps(openapi)
    for name in set(re.findall(r'"#/components/schemas/(\w+)"', text)):
        assert name in openapi["components"]["schemas"]
    assert "#/$defs" not in text


def test_the_key_is_asked_everywhere_but_where_a_watchdog_looks(folder):
    with serving(folder, key=KEY) as server, httpx.Client(base_url=server.address) as http:
        right = {"authorization": f"Bearer {KEY}"}
        for path in ("/v1/models", "/metrics", "/openapi.json", CHAT, "/tokenize", "/nowhere"):
            assert http.get(path).status_code == 401
            assert http.get(path, headers={"authorization": f"Bearer {KEY}x"}).status_code == 401
            assert http.get(path, headers=right).status_code != 401
        for path in ("/health", "/ready", "/"):
            assert http.get(path).status_code == 200


def test_without_a_key_only_this_machine_is_answered(http):
    assert http.get("/v1/models", headers={"host": "evil.example"}).status_code == 400
    assert http.get("/v1/models", headers={"origin": "https://evil.example"}).status_code == 403
    assert http.get("/v1/models", headers={"origin": "http://localhost:3000"}).status_code == 200


@pytest.mark.full
def test_long_and_slow_bodies_and_half_open_clients(folder):
    with serving(folder, max_body_bytes=2000, idle_seconds=0.4) as server:
        with httpx.Client(base_url=server.address) as http:
            assert http.post(CHAT, content=b"x" * 3000).status_code == 413
            assert http.post(CHAT, content=(b"x" * 500 for _ in range(8))).status_code == 413
        host, port = server.address.removeprefix("http://").split(":")
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n".encode()
        for sent, answer in ((b"", b""), (b"POST / HT", b""), (head + b"{", b"HTTP/1.1 408")):
            with socket.create_connection((host, int(port)), timeout=5) as client:
                client.sendall(sent)
                began = time.monotonic()
                assert client.recv(1000)[: len(answer)] == answer
                assert 0.3 < time.monotonic() - began < 3
        with socket.create_connection((host, int(port)), timeout=5) as client:  # asks for much, and takes nothing
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            many = json.dumps({"prompt": "go on", "max_tokens": 4000, "n": 8, "logprobs": 1, "stream": True})
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(many)}\r\n\r\n"
            client.sendall(head.encode() + many.encode())
            until = time.monotonic() + 10
            while server.engine.taken == 0:
                assert time.monotonic() < until
            while server.engine.taken:
                assert time.monotonic() < until
                time.sleep(0.02)
        with httpx.Client(base_url=server.address) as http:
            assert 'outcome="cancelled"' in http.get("/metrics").text
