from seqloom.studies.measured import measured


def test_what_was_measured_is_kept_for_its_settings(tmp_path):
    path, calls = tmp_path / "deep" / "a.json", []

    def measure():
        calls.append(1)
        return {"value": len(calls), "row": (1, 2)}

    first, machine = measured(path, {"size": (1, 2)}, measure)
    assert first == {"value": 1, "row": [1, 2]}
    assert measured(path, {"size": (1, 2)}, measure) == (first, machine)
    assert measured(path, {"size": (1, 3)}, measure)[0]["value"] == 2
    path.write_text("{", encoding="utf-8")
    assert measured(path, {"size": (1, 3)}, measure)[0]["value"] == 3
