import torch

from seqloom.core.machine import machine_facts


def test_facts_name_this_machine() -> None:
    facts = machine_facts(torch.device("cpu"))
    assert facts["device"] == "cpu"
    assert facts["torch"] == torch.__version__
    assert facts["machine"]
    assert int(facts["cores"]) >= 1
