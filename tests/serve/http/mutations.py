"""Bodies and requests that nobody should send, made from such as are fine; each a function of a number."""

import copy
import json
import random
from collections.abc import Callable
from typing import Any

from serve.http.raw import request

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
FINE: list[tuple[str, dict[str, Any]]] = [
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "SAY{hi}"}], "max_tokens": 2, "temperature": 0.5},
    ),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "SAY{a b}"}], "stream": True, "n": 2, "tools": [TOOL]},
    ),
    (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "system", "content": "x"},
                {"role": "user", "content": [{"type": "text", "text": "COUNT{2}"}]},
            ],
            "stop": ["7"],
            "logprobs": True,
            "top_logprobs": 1,
            "logit_bias": {"5": 1.5},
            "seed": 3,
            "chat_template_kwargs": {"enable_thinking": False},
        },
    ),
    (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "SAY{1}"}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}},
        },
    ),
    ("/v1/completions", {"prompt": "COUNT{2}", "max_tokens": 3, "echo": True, "logprobs": 1, "top_p": 0.9}),
    ("/v1/completions", {"prompt": [[1, 5, 9], [3]], "max_tokens": 1, "stream": True, "stop": "."}),
    ("/v1/responses", {"input": "SAY{hi}", "max_output_tokens": 16, "stream": True, "top_logprobs": 1}),
    ("/tokenize", {"prompt": "a text"}),
    ("/tokenize", {"messages": [{"role": "user", "content": "hello"}]}),
    ("/detokenize", {"tokens": [5, 6, 7]}),
]

ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    -(2**63),
    2**64,
    10**400,
    0.5,
    -0.0,
    1e308,
    1e-300,
    "",
    "x",
    "\u0000",
    "\ud800",
    "\udfff\ud800",
    "a\u202eb",
    "😀" * 50,
    "x" * 5000,
    [],
    {},
    [[]],
    [None],
    {"": ""},
    {"$ref": "#"},
    ["x"] * 300,
    "{{ 7 * 7 }}",
    "<|im_end|>",
]
NUMBERS = [
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e999",
    b"-1e999",
    b"9" * 5000,
    b"0x10",
    b"01",
    b"1e-400",
    b"--1",
    b"1." + b"3" * 4000,
]
WRAPPERS = [b"[", b'{"a":', b'[{"a":[']
METHODS = ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "POST", "BREW"]
PATHS = [
    "/",
    "//",
    "/v1",
    "/v1/models/x",
    "/v1/../health",
    "/%00",
    "/v1/chat/completions/",
    "/" + "a" * 3000,
    "/?" + "q=1&" * 500,
]
SCHEMAS: list[Any] = [
    {"type": "string", "pattern": "(a+)+$"},
    {"type": "array", "items": {"$ref": "#"}},
    {"$ref": "#"},
    {"$ref": "http://127.0.0.1:9/x"},
    {"enum": list(range(5000))},
    {"type": "string", "minLength": 10**9},
    {"not": {}},
    {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {"type": "object", "properties": {str(n): {"type": "string", "pattern": "a{1,900}"} for n in range(50)}},
    False,
    {"type": "nonsense"},
]
REGEXES = ["(a+)+$", "(" * 500, "a{1,99999}", "(?P<x>a)(?P=x)", "[", "(?R)", ".{1,5000}" * 20, "\\p{Greek}" * 300]


def hostile(number: int) -> bytes:
    """One request."""
    draw = random.Random(number)
    path, fine = draw.choice(FINE)
    return draw.choice(WAYS)(draw, path, json.loads(json.dumps(fine)))


def odd(draw: random.Random) -> Any:
    """A value of its own: what is put into it later must not stay for the next request."""
    return copy.deepcopy(draw.choice(ODD))


def other_values(draw: random.Random, path: str, body: Any) -> bytes:
    for _ in range(draw.randrange(1, 4)):
        holder, key = draw.choice(_places(body))
        holder[key] = odd(draw)
    return request("POST", path, json.dumps(body).encode())


def other_keys(draw: random.Random, path: str, body: Any) -> bytes:
    objects = [each for each in [body, *(holder[key] for holder, key in _places(body))] if isinstance(each, dict)]
    chosen = draw.choice(objects)
    if chosen and draw.random() < 0.5:
        del chosen[draw.choice(list(chosen))]
    else:
        chosen[draw.choice(["", "\ud834", "__proto__", "stream_options", "n", "x" * 500])] = odd(draw)
    return request("POST", path, json.dumps(body).encode())


def raw_numbers(draw: random.Random, path: str, body: Any) -> bytes:
    holder, key = draw.choice(_places(body))
    holder[key] = "HERE"
    return request("POST", path, json.dumps(body).encode().replace(b'"HERE"', draw.choice(NUMBERS)))


def nested(draw: random.Random, path: str, body: Any) -> bytes:
    holder, key = draw.choice(_places(body))
    holder[key] = "HERE"
    deep = draw.choice(WRAPPERS) * draw.choice((50, 1000, 50_000))
    return request("POST", path, json.dumps(body).encode().replace(b'"HERE"', deep))


def broken_bytes(draw: random.Random, path: str, body: Any) -> bytes:
    data = bytearray(json.dumps(body, ensure_ascii=draw.random() < 0.5).encode())
    for _ in range(draw.randrange(1, 6)):
        place = draw.randrange(len(data))
        data[place : place + draw.randrange(3)] = draw.randbytes(draw.randrange(4))
    return request("POST", path, bytes(data))


def other_encodings(draw: random.Random, path: str, body: Any) -> bytes:
    text = json.dumps(body)
    data = draw.choice(
        [
            text.encode("utf-16"),
            b"\xef\xbb\xbf" + text.encode(),
            text.encode() + b"\x00",
            b"",
            b"null",
            text.encode()[:-3],
        ]
    )
    return request("POST", path, data)


def forms(draw: random.Random, path: str, body: Any) -> bytes:
    """Schemas and expressions that are hard to compile, or none."""
    parameters = draw.choice([draw.choice(SCHEMAS), {"properties": {"a": draw.choice(SCHEMAS)}}])
    chosen = draw.choice(
        [
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": draw.choice(SCHEMAS)}}},
            {"structured_outputs": {"regex": draw.choice(REGEXES)}},
            {
                "structured_outputs": {
                    "grammar": draw.choice(["start: start", "", "start: /a/ " * 500, "%import x", 'start: "a"{1,9999}'])
                }
            },
            {
                "tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": parameters}}],
                "tool_choice": draw.choice(["required", "auto"]),
            },
        ]
    )
    return request("POST", "/v1/chat/completions", json.dumps(FINE[0][1] | chosen).encode())


def other_requests(draw: random.Random, path: str, body: Any) -> bytes:
    data = json.dumps(body).encode()
    headers = draw.choice(
        [("X: " + "y" * 3000,), ("Authorization: Bearer " + "é" * 40,), ("Accept: \x7f",), ("Expect: nothing",)]
    )
    chosen = draw.choice([path, *PATHS])
    return request(draw.choice(METHODS), chosen, data, headers)


WAYS: list[Callable[[random.Random, str, Any], bytes]] = [
    other_values,
    other_values,
    other_keys,
    raw_numbers,
    nested,
    broken_bytes,
    other_encodings,
    forms,
    other_requests,
]


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (holder, key) below."""
    keys = tree.keys() if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    return [place for key in keys for place in ((tree, key), *_places(tree[key]))]
