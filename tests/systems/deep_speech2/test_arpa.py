"""ARPA files, there and back, and as others write them."""

import math
from pathlib import Path

import numpy as np
import pytest

from seqloom.core.errors import DataError
from seqloom.systems.deep_speech2.arpa import read_arpa, write_arpa
from seqloom.systems.deep_speech2.ngram_estimate import estimate

FOREIGN = """

\\data\\
ngram 1=4
ngram 2=2
ngram 3=1

\\1-grams:
-1.0\t</s>
-99\t<s>\t-0.5
-0.3\tb\t-0.2
-0.6\ta\t-0.4

\\2-grams:
-0.2 <s> a -0.1
-0.7 a b

\\3-grams:
-0.05\t<s> a b

\\end\\
"""


@pytest.mark.parametrize("name", ["x.arpa", "x.arpa.gz"])
def test_there_and_back(tmp_path: Path, name: str) -> None:
    model = estimate([["a", "b", "ä"], ["b", "a"], ["a", "b"]], 3).model
    write_arpa(tmp_path / name, model)
    first = (tmp_path / name).read_bytes()
    read = read_arpa(tmp_path / name)
    assert (read.order, read.words) == (model.order, model.words)
    for field in ("parent", "word", "link"):
        np.testing.assert_array_equal(getattr(read, field), getattr(model, field))
    for field in ("log_prob", "backoff"):
        np.testing.assert_allclose(getattr(read, field), getattr(model, field), rtol=1e-6, atol=1e-6)
    write_arpa(tmp_path / "again" if name == "x.arpa" else tmp_path / "again.gz", read)
    assert next(tmp_path.glob("again*")).read_bytes() == first


def test_reads_what_others_write(tmp_path: Path) -> None:
    (tmp_path / "x.arpa").write_text(FOREIGN)
    model = read_arpa(tmp_path / "x.arpa")
    tens = model.log_probs(["a", "b"]) / math.log(10)
    assert tens == pytest.approx([-0.2, -0.05, -0.2 - 1.0], abs=1e-6)  # "a b" and "<s> a b" list no backoff
    assert model.log_probs(["b"])[0] / math.log(10) == pytest.approx(-0.5 - 0.3, abs=1e-6)
    assert model.log_probs(["z"])[0] / math.log(10) == pytest.approx(-0.5 - 100, abs=1e-4)


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.arpa"
    for old, new, said in (
        ("\\data\\", "data", "first line must be"),
        ("ngram 2=2", "ngram 2=two", "line 5: expected 'ngram 2=COUNT'"),
        ("\\1-grams:", "\\2-grams:", "line 8: expected '\\\\1-grams:'"),
        ("-0.6\ta", "x\ta", "line 12: expected log10 p, 1 words"),
        ("-0.7 a b", "-0.7 a z", "line 16: 'z' is not among the 1-grams"),
        ("-0.7 a b", "-0.7 <s> a", "lists '<s> a' twice"),
        ("<s> a b", "b a b", "lists 'b a b' but not the n-gram of its first 2 words"),
        ("-99\t<s>\t-0.5", "-1\tc", "<s> must be among"),
        ("\\end\\", "", "ends without"),
    ):
        assert old in FOREIGN
        path.write_text(FOREIGN.replace(old, new))
        with pytest.raises(DataError, match=said):
            read_arpa(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as an ARPA"):
        read_arpa(path)
    with pytest.raises(DataError, match="cannot be read as an ARPA"):
        read_arpa(tmp_path / "missing.arpa")
    path.with_suffix(".gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="cannot be read as an ARPA"):
        read_arpa(path.with_suffix(".gz"))
