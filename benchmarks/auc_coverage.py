"""Does the interval of an AUC hold the truth of few patients with several rows?

    python -m benchmarks.auc_coverage

Simulated studies whose true AUC is known: a row's score is N(0, 1) of a benign and N(d, 1) of a malignant patient, of
which 0.7 of the variance is her own and shared by her rows, so that the AUC is Φ(d / √2). Of each study three intervals
of 95 %: the percentile bootstrap of patients, that of Obuchowski's variance on the logit scale with the normal law, and
the same with Student's t, which `evaluate` shows. Studies whose rows are ranked without a fault, or all wrongly, have
none, and are counted apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy import stats

from benchmarks import report
from mpmmu_rt.evaluation.auc import Auc, estimate_auc
from mpmmu_rt.evaluation.figures import DRAWS, WITHOUT_THRESHOLD, Answers, bootstrap
from mpmmu_rt.metrics import CONFIDENCE

SHARED = 0.7  # of a score's variance: the patient's
SEED = 1
NORMAL = NormalDist()
Ends = tuple[float, float]


@dataclass(frozen=True)
class Design:
    """Patients of each class, rows of each patient, and the true AUC."""

    benign: int
    malignant: int
    rows: int
    auc: float

    def study(self, rng: np.random.Generator) -> Answers:
        patients = self.benign + self.malignant
        of_row = np.repeat(np.arange(patients), self.rows)
        label = (of_row >= self.benign).astype(np.int64)
        own = rng.normal(0, math.sqrt(SHARED), patients)[of_row]
        apart = math.sqrt(2) * NORMAL.inv_cdf(self.auc)
        score = apart * label + own + rng.normal(0, math.sqrt(1 - SHARED), len(label))
        return Answers(label, score, tuple(map(str, of_row)))


DESIGNS = (
    Design(6, 2, 4, 0.8),
    Design(27, 5, 4, 0.8),
    Design(20, 12, 4, 0.8),
    Design(20, 12, 4, 0.94),
    Design(60, 30, 2, 0.8),
)


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--studies", type=int, default=500, help="of each design")
    given = parser.parse_args()
    print(report.heading("How often an interval of 95 % holds the true AUC", ("scipy",)))
    print(f"{given.studies} studies of each design, seed {SEED}; {DRAWS} draws to a bootstrap.\n")
    print(report.columns("patients, rows of each | AUC | without an interval | bootstrap | normal law | t, used"))
    for design in DESIGNS:
        held = np.array(list(covered(design, given.studies)))
        shares = (f"{share:.3f}" for share in held.mean(0))
        name = f"{design.benign} + {design.malignant}, {design.rows}"
        print(report.row([name, design.auc, given.studies - len(held), *shares]), flush=True)


def covered(design: Design, studies: int) -> Iterator[tuple[bool, ...]]:
    """Of each study with an interval, whether the bootstrap's, the normal law's and Student's hold the truth."""
    rng = np.random.default_rng(SEED)
    for _ in range(studies):
        answers = design.study(rng)
        found = estimate_auc(answers.label, answers.probability, answers.groups)
        drawn = bootstrap(answers, {"auc": WITHOUT_THRESHOLD["auc"]})["auc"]
        if found.low is None or found.high is None or drawn.low is None or drawn.high is None:
            continue
        fewest = min(design.benign, design.malignant)
        intervals = ((drawn.low, drawn.high), narrowed(found, fewest), (found.low, found.high))
        yield tuple(low <= design.auc <= high for low, high in intervals)


def narrowed(found: Auc, fewest: int) -> Ends:
    """The interval with the normal law instead of Student's of `fewest` - 1."""
    assert found.low is not None
    assert found.high is not None
    less = NORMAL.inv_cdf((1 + CONFIDENCE) / 2) / float(stats.t.ppf((1 + CONFIDENCE) / 2, fewest - 1))
    low, high = (math.log(end / (1 - end)) for end in (found.low, found.high))
    centre, reach = (low + high) / 2, less * (high - low) / 2
    return 1 / (1 + math.exp(reach - centre)), 1 / (1 + math.exp(-reach - centre))


if __name__ == "__main__":
    main()
