"""Kill runs again and again, resume them, and compare the result with an uninterrupted run.

python dev/campaigns/kill.py --kills 100
python dev/campaigns/kill.py --kills 20 --data DrawingSamples FromPython NowAndThen

Needs no data and about four seconds a kill. Status 1 if a single bit differs, or if the comparison does not see that
something is wrong where a part of the state was left out on purpose.
"""

import argparse
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.campaign import VARIANTS, Campaign, differences
from tests.small_data import DRAWING

LOADERS = ["SmallTensors", "SmallSamples", *(loader.__name__ for loader in DRAWING)]
PARTS = ("random", "optimizer", "schedule", "metrics")
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")
KILLS_A_RUN = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="for each kind of data (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument(
        "--signals", choices=SIGNALS, nargs="+", default=["SIGKILL"], help="drawn for each kill (default: SIGKILL)"
    )
    parser.add_argument("--data", choices=LOADERS, nargs="+", default=LOADERS[:2])
    parser.add_argument("--checkpoint", choices=("full", "sharded"), default="full", help="of the runs (default: full)")
    parser.add_argument("--variant", choices=VARIANTS, default="", help="of the config (default: none of these)")
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for data in options.data:
            failed += campaign(Path(folder) / data, data, options)
        for part in PARTS:
            failed += not control(Path(folder) / part, part)
    return int(failed > 0)


def campaign(folder: Path, data: str, options: argparse.Namespace) -> int:
    """The number of runs that did not end as the one that was left alone, with full checkpoints."""
    kills, seed = options.kills, options.seed
    signals = tuple(signal.Signals[name] for name in options.signals)
    how: dict[str, Any] = {"workers": (0, 1, 2), "signals": signals, "checkpoint": options.checkpoint}
    how["variant"] = options.variant
    first = Campaign(_made(folder / "alone"), data, seed, variant=options.variant)
    alone, wrong, done = first.alone(), 0, Counter[str]()
    runs = 0
    while done.total() < kills:
        runs += 1
        one = Campaign(_made(folder / f"{runs}"), data, seed + runs, **how)
        found = differences(alone, one.killed(min(KILLS_A_RUN, kills - done.total())))
        done.update(one.moments)
        wrong += bool(found)
        print(
            f"{data}: run {runs}, {one.kills} kills ({done.total()} in all): {found or 'equal bit for bit'}", flush=True
        )
    moments = ", ".join(f"{count} {moment}" for moment, count in sorted(done.items()))
    print(f"{data}: {done.total()} kills ({moments}) in {runs} runs, {wrong} runs differ", flush=True)
    return wrong


def control(folder: Path, part: str) -> bool:
    """Whether it is seen when this part of the state is left out of each resume.

    Always with the same kills: with some others, no metric is pending in any of them.
    """
    alone = Campaign(_made(folder / "alone"), "SmallTensors", 0).alone()
    one = Campaign(_made(folder / "killed"), "SmallTensors", 1, left_out=part)
    found = differences(alone, one.killed(5))
    print(f"control, {part} left out: {f'seen in {found}' if found else 'NOT SEEN'}", flush=True)
    return bool(found)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
