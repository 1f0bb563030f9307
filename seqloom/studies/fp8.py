"""Does training in FP8 keep the loss of BF16?

    fp8_nemotron_h    one scale for each tensor; E4M3, gradients E5M2; first and last two blocks in BF16
    fp8_blockwise     scales for 1 x 128 and 128 x 128 blocks; E4M3 throughout, or gradients in E5M2 (hybrid)
    mxfp8             a power-of-two scale for every 32 elements

All branch from one BF16 checkpoint (`branching.py`).
Papers: Nemotron-H (arXiv 2504.03624), Nemotron Nano 2 (arXiv 2508.14444); OCP Microscaling for mxfp8.
"""

from pathlib import Path

from seqloom.core.config import config
from seqloom.numerics.precision import PrecisionConfig
from seqloom.numerics.recipes import Fp8Options
from seqloom.studies import precision_tables
from seqloom.studies.branching import train_branches
from seqloom.studies.courses import Branched
from seqloom.studies.precision_looks import Looks, look_at_branch_point
from seqloom.studies.precision_scales import PrecisionOptions, plan
from seqloom.studies.precision_tables import gap_chart, gap_table, within
from seqloom.studies.study import Claim, Findings
from seqloom.train.observer import Observer

TENSOR, E4M3, HYBRID, MX = "fp8_nemotron_h", "fp8_blockwise", "fp8_blockwise hybrid", "mxfp8"
RECIPES = {
    TENSOR: PrecisionConfig(activations="bf16", recipe="fp8_nemotron_h"),
    E4M3: PrecisionConfig(activations="bf16", recipe="fp8_blockwise"),
    HYBRID: PrecisionConfig(activations="bf16", recipe="fp8_blockwise", fp8=Fp8Options(gradient="e5m2")),
    MX: PrecisionConfig(activations="bf16", recipe="mxfp8"),
}


@config
class Options(PrecisionOptions):
    """Train a BF16 model, branch into the FP8 recipes on the same batches, and compare their losses.

    Stopped or out of time, it goes on where it was when started again.

    Example: seqloom study fp8 --seeds 3
    """


def study(options: Options, folder: Path, watch: Observer) -> Findings:
    """Train what is missing, and judge all that is there.

    Raises:
        Interrupted: finished courses are stored, and the same command goes on.
    """
    planned = plan(options, RECIPES)
    found = train_branches(planned, folder, watch)
    return findings(found, look_at_branch_point(planned, folder, watch))


def findings(found: Branched, looks: Looks) -> Findings:
    """What the branches say, however many there are."""
    return Findings(
        title="FP8 training beside BF16, from one checkpoint",
        source="Nemotron-H, arXiv 2504.03624; Nemotron Nano 2, arXiv 2508.14444",
        setting=precision_tables.settings(found),
        tables=[gap_table(found, looks)],
        claims=[_per_tensor(found), _blocks(found, E4M3), _blocks(found, HYBRID), _steady(found)],
        remarks=[
            *precision_tables.remarks(found),
            "Blocks are summed in FP32, as tensor cores are said to; the limited accumulators of real hardware are not "
            "emulated.",
        ],
        charts=[gap_chart(found)],
        data=precision_tables.data(found, looks),
    )


def _per_tensor(found: Branched) -> Claim:
    claim = {
        "name": "C1 per tensor",
        "says": "The loss under per-tensor scaling is within 0.4 % of BF16.",
        "paper": "under 0.1 % at 8 B to 56 B (from memory; downstream on par)",
    }
    return within(found, claim, TENSOR, 0.004)


def _blocks(found: Branched, name: str) -> Claim:
    claim = {
        "name": f"C2 {name}",
        "says": "The loss under block scaling is within 0.3 % of BF16.",
        "paper": "no figure known; 12 B, 20 T tokens without instabilities",
    }
    return within(found, claim, name, 0.003)


def _steady(found: Branched) -> Claim:
    courses = [course for (name, _), course in found.courses.items() if name in RECIPES]
    ended = [course for course in courses if course.ended]
    return Claim(
        name="C2 steady",
        says="No step of an FP8 recipe is lost to a number that is not finite.",
        paper="none reported",
        here=f"{len(ended)} of {len(courses)} branches ended early" if courses else "no branch yet",
        holds=not ended if courses else None,
    )
