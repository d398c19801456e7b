"""Simulate how often the statistics are right, through the code that is shipped, and write it down.

python experiments/calibration/calibrate.py              # all of it: calibration.csv, about an hour of one core
python experiments/calibration/calibrate.py 100          # with so many repetitions of every design
"""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

import comparisons
from designs import Design, grid
from rates import Rate

WRITTEN = Path(__file__).with_name("calibration.csv")
COLUMNS = ("statement", "design", "claimed", "simulated", "low", "high", "cases")
TAUS = (0.5, 1.0, 2.0)  # spreads of true means, in standard deviations of a run


def rates(repetitions: int) -> Iterator[Rate]:
    yield comparisons.misses(repetitions)
    studies = [Design(k, n, spread) for k, n in ((2, 3), (3, 3), (6, 3), (12, 5)) for spread in ("equal", "1:2")]
    yield from comparisons.probabilities(studies, TAUS, repetitions)
    for design in (Design(k, n) for k, n in ((2, 3), (2, 5), (6, 3), (6, 5), (12, 3))):
        yield comparisons.power(design, repetitions)
    for design in grid():
        yield from comparisons.errors(design, repetitions)


def main() -> None:
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    refuted = claims = 0
    with WRITTEN.open("w") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        for rate in rates(repetitions):
            table.writerow(rate.row)
            file.flush()
            claims, refuted = claims + 1, refuted + rate.is_refuted
            mark = "REFUTED" if rate.is_refuted else "" if rate.holds else "within chance"
            print(f"{rate.statement:45} {rate.design:50} {rate.simulated:.3f} of {rate.of} {mark}", flush=True)
    print(f"{refuted} of {claims} claims refuted → {WRITTEN}")


if __name__ == "__main__":
    main()
