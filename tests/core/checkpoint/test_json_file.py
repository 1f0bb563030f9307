"""Strict reading of JSON: what is right is read as it is, what is not is refused with file and reason."""

import json
import math
import os
from pathlib import Path

import pytest

from seqloom.core.checkpoint.json_file import parse_json, read_json, shown
from seqloom.core.errors import CheckpointError


def test_what_is_right_is_read_as_it_is(tmp_path: Path) -> None:
    value = {"a": [1, -2.5, 1e300, True, None, "é😀"], "b": {"a": {}, "": []}, "c": 10**30}
    for ascii in (True, False):
        (tmp_path / "x.json").write_text(json.dumps(value, ensure_ascii=ascii), encoding="utf-8")
        assert read_json(tmp_path / "x.json") == value


def test_infinity_only_under_permitted_keys() -> None:
    found = parse_json(b'{"limit": [0.0, Infinity], "a": {"limit": -Infinity}}', "x", infinity_in=("limit",))
    assert found == {"limit": [0.0, math.inf], "a": {"limit": -math.inf}}
    for text in (b'{"a": Infinity}', b'{"limit": {"a": Infinity}}', b'{"limit": 1, "b": [[Infinity]]}'):
        with pytest.raises(CheckpointError, match=r"^x: Infinity, which is not JSON"):
            parse_json(text, "x", infinity_in=("limit",))
    assert parse_json(b'{"a": "Infinity"}', "x") == {"a": "Infinity"}
    with pytest.raises(CheckpointError, match=r"^x: NaN"):
        parse_json(b'{"limit": NaN}', "x", infinity_in=("limit",))


def test_a_file_at_its_limit_is_read_and_one_beyond_is_not(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": 1}')
    assert read_json(path, limit=8) == {"a": 1}
    with pytest.raises(CheckpointError, match=r"x\.json: 8 bytes; at most 7 are read here"):
        read_json(path, limit=7)


def test_depth_is_counted_exactly() -> None:
    assert parse_json(b'{"a": ' + b"[" * 63 + b"]" * 63 + b"}", "x")
    for text in (b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}", b'{"a":' * 65 + b"1" + b"}" * 65):
        with pytest.raises(CheckpointError, match="nested deeper than 64 levels"):
            parse_json(text, "x")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "not a JSON file: Expecting value"),
        (b"{} {}", "not a JSON file: Extra data"),
        (b"\xef\xbb\xbf{}", "not a JSON file"),
        (b'{"a": "\xe9"}', "not UTF-8 at byte 7"),
        (b"{'a': 1}", "not a JSON file"),
        (b'{"a": 01}', "not a JSON file"),
        (b'{"a": "\n"}', "not a JSON file: Invalid control character"),
        (b'"text"', "expected an object, found a text"),
        (b"null", "expected an object, found null"),
        (b"3", "expected an object, found a number"),
        (b'{"a": {"b": 1, "c": 2, "b": 1}}', "the key 'b' appears twice"),
        (b'{"a": -1e400}', "'-1e400' is too large"),
        (b'{"a": 1' + b"0" * 40 + b"}", "a whole number of 41 digits"),
        (b'{"a": "\\udfff"}', "half a character"),
        (b'{"\\uD83D": 1}', "half a character"),
        (b'{"a": [' + b"0," * 600_000 + b"0]}", "values; at most 600,000"),
    ],
)
def test_what_is_wrong_is_named(text: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=told) as caught:
        read_json(tmp_path / "x.json")
    assert str(caught.value).startswith(f"{tmp_path / 'x.json'}: ")


def test_a_pair_of_halves_is_a_character() -> None:
    assert parse_json(b'{"a": "\\ud83d\\ude00"}', "x") == {"a": "😀"}


class TestWhichFilesAreOpened:
    def test_links_within_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "run" / "steps").mkdir(parents=True)
        (tmp_path / "run" / "steps" / "a.json").write_text("{}")
        (tmp_path / "run" / "latest").symlink_to("steps")
        (tmp_path / "run" / "a.json").symlink_to("latest/a.json")
        assert read_json(tmp_path / "run" / "a.json") == {}
        (tmp_path / "elsewhere").symlink_to("run")
        assert read_json(tmp_path / "elsewhere" / "a.json") == {}

    def test_the_links_of_a_hugging_face_cache(self, tmp_path: Path) -> None:
        snapshot = tmp_path / "models--a--b" / "snapshots" / "0123abc"
        snapshot.mkdir(parents=True)
        (tmp_path / "models--a--b" / "blobs").mkdir()
        (tmp_path / "models--a--b" / "blobs" / "77ff").write_text("{}")
        (snapshot / "a.json").symlink_to("../../blobs/77ff")
        assert read_json(snapshot / "a.json") == {}
        (snapshot / "b.json").symlink_to("../../refs")
        (tmp_path / "models--a--b" / "refs").write_text("{}")
        with pytest.raises(CheckpointError, match="leaves its folder"):
            read_json(snapshot / "b.json")

    def test_nothing_outside(self, tmp_path: Path) -> None:
        (tmp_path / "secret.json").write_text("{}")
        (tmp_path / "model").mkdir()
        for target in ("../secret.json", str(tmp_path / "secret.json"), "/dev/null"):
            link = tmp_path / "model" / "a.json"
            link.unlink(missing_ok=True)
            link.symlink_to(target)
            with pytest.raises(CheckpointError, match=r"a\.json: a link that leaves its folder"):
                read_json(link)

    def test_nothing_but_regular_files(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "folder").mkdir()
        (tmp_path / "round").symlink_to("round")
        for name, told in [
            ("pipe", "a pipe, not a regular file"),
            ("folder", "a folder, not a regular file"),
            ("round", "round: "),
            ("gone", "gone: missing"),
            ("gone\0", "null"),
            ("x" * 300, "too long"),
        ]:
            with pytest.raises(CheckpointError, match=told):
                read_json(tmp_path / name)


def test_shown_is_short_and_harmless() -> None:
    assert shown("a'b") == '"a\'b"'
    assert "\x1b" not in shown("\x1b[2J")
    assert len(shown("x" * 10_000)) < 100
    assert len(shown([0] * 10_000)) < 100
