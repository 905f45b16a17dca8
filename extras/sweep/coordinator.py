"""Runs the trials of a sweep: claims them, starts their processes, follows their epochs and records how they end.

Several coordinators may work on one folder, and each may be killed at any moment: an unclaimed, unfinished trial is
continued from its checkpoint by whichever finds it first.
"""

import contextlib
import itertools
import os
import re
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from extras.records import best_of
from extras.sweep.display import Display
from extras.sweep.search import Search
from extras.sweep.sweep_folder import TRIAL, Outcome, State, SweepFolder, Trial, is_running
from extras.sweep.trial_process import ERRORS, Progress, Running, TrialProcesses
from utils.device_errors import OUT_OF_MEMORY
from utils.errors import UserError
from utils.files import read_text, size
from utils.signals import SignalWatch

POLL = 0.2
"""Seconds between checks on running trials, and for one to claim."""
GRACE = 60.0
"""Seconds for a trial to save and exit after SIGTERM; then it is killed, and continues from an older checkpoint."""
MOST_DEATHS = 10
"""Consecutive deaths without progress after which a trial has failed. Several, since each may be a deliberate kill."""
MOST_REFUSED = 3
"""Number of trials that fail for the same reason before any had an epoch, after which a sweep ends."""
DISK_FULL = ("No space left on device", "Disk quota exceeded", "Read-only file system")


class Coordinator:
    """jobs: trials to run at once."""

    def __init__(self, folder: SweepFolder, processes: TrialProcesses, display: Display, *, jobs: int) -> None:
        self.folder = folder
        self.processes = processes
        self.display = display
        self.jobs = jobs
        self.spec = folder.read_spec()
        self.search = Search(self.spec)
        self.running: list[Running] = []
        self.signals = SignalWatch()

    def run(self) -> list[Trial]:
        """Run until all trials have ended, and return them. Raises Stopped after a signal, once all have saved."""
        with self.signals:
            try:
                while True:
                    self.signals.check()
                    self._fill()
                    if not self.running and self._finished():
                        return self.folder.trials()
                    time.sleep(POLL)
                    self.signals.check()
                    for one in list(self.running):
                        self._look(one)
                    self.display.update(self.folder.trials(), self.running, self.total())
            finally:  # however this ends, let the trials save and exit first
                self.display.close()
                self.processes.end()
                stop([one.process for one in self.running if one.process])
                for one in self.running:
                    self.folder.release(one.trial)

    # ------------------------------------------------------------------ starting

    def total(self) -> int:
        return self.spec.trials or len(self.search.points)

    def _finished(self) -> bool:
        trials = self.folder.trials()
        return len(trials) >= self.total() and all(trial.outcome for trial in trials)

    def _fill(self) -> None:
        """Start as many trials as there is room for."""
        while len(self.running) < self.jobs and (trial := self._next()):
            taken = {one.slot for one in self.running}
            slot = next(slot for slot in range(self.jobs) if slot not in taken)
            one = Running(trial=trial, slot=slot, at_claim=Progress.of(trial))
            self.running.append(one)
            self._start(one)

    def _next(self) -> Trial | None:
        """Claim a trial: one left unfinished, or else a new one."""
        with self.folder.locked():
            self.spec = self.folder.read_spec()  # --trials may have raised the number
            trials = self.folder.trials()
            self.search.follow(trials)
            own = {one.trial.number for one in self.running}
            for trial in trials:
                if trial.outcome is None and trial.number not in own and self.folder.claim(trial):
                    return trial
            while len(trials) < self.total():
                numbers = {trial.number for trial in trials}  # the user may have removed some
                number = next(number for number in itertools.count() if number not in numbers)
                trial = self.folder.create_trial(number, self.search.choose(number, trials))
                if trial.outcome is None and self.folder.claim(trial):
                    return trial
                self._recorded(trial)
                trials = self.folder.trials()
        return None

    def _start(self, one: Running) -> None:
        one.at_start = Progress.of(one.trial)
        one.process = None if is_running(one.trial.run) else self.processes.start(one.trial.run, one.slot)

    # ------------------------------------------------------------------ following

    def _look(self, one: Running) -> None:
        """Read what a trial has done since the last check."""
        status = one.process.poll() if one.process else None  # negative for a signal; None while it runs
        length = size(one.trial.run.path / "metrics.jsonl")
        if length != one.read:
            one.read = length
            values = one.trial.measured(self.spec.value_name)
            one.epochs, best = len(values), best_of(values, self.spec.monitor)
            one.value = best[1] if best else None
            if self.search.pruned_at(one.trial) is not None and one.process and not one.pruned:
                one.process.terminate()
                one.pruned = True
        if one.process is None and not is_running(one.trial.run):
            self._start(one)
        elif status is not None:
            self.signals.check()  # a Ctrl-C in a terminal reaches the trials too
            self._ended(one, status)

    def _ended(self, one: Running, status: int) -> None:
        """Record the end of a trial, or start its process again if that was killed."""
        pruned = self.search.pruned_at(one.trial)
        values = one.trial.measured(self.spec.value_name)[:pruned]
        best = best_of(values, self.spec.monitor)
        state: State = "failed"
        reason = ""
        if pruned is not None:
            state = "pruned"
        elif status == 0 and best:
            state = "complete"
        elif status == 0:
            reason = f"{self.spec.value_name} was not measured, or not finite, in any epoch"
        elif status in (1, 2):
            reason = _reason(one.trial)
            self._check_reason(one, reason)
        else:
            one.deaths = one.deaths + 1 if Progress.of(one.trial) == one.at_start else 0
            if one.deaths < MOST_DEATHS:
                self._start(one)
                return
            reason = f"its process was killed {MOST_DEATHS} times without progress (status {status}; out of memory?)"
        epoch, value = (best[0] + 1, best[1]) if best else (0, None)
        self._finish(one, Outcome(state, value, epoch, len(values), one.trial.seconds(), reason))
        # of a loss or memory, the trial's values may be the cause, rather than the config
        if status in (1, 2) and not (values or one.trial.diverged or re.search(OUT_OF_MEMORY, reason)):
            self._check_refusals(reason)

    def _check_reason(self, one: Running, reason: str) -> None:
        """Raise UserError if a trial's values are hardly what made it fail."""
        if any(text in reason for text in DISK_FULL):
            raise UserError(f"{one.trial.name}: {reason}\nNothing is lost: make room, and continue the sweep")
        resumed = bool(one.at_claim.checkpoints)
        if resumed and Progress.of(one.trial) == one.at_claim and not one.trial.diverged:
            raise UserError(
                f"{one.trial.name} cannot be resumed: {reason}\nNothing is lost: fix the cause, and continue the "
                "sweep. To run the trial from the beginning instead, remove its folder first"
            )

    def _check_refusals(self, reason: str) -> None:
        """Raise UserError if all trials so far failed for this reason, such as missing data."""
        ended = [trial.outcome for trial in self.folder.trials() if trial.outcome]
        # without the trials' names, as in the paths of their configs
        alike = all(not each.epochs and TRIAL.sub("", each.reason) == TRIAL.sub("", reason) for each in ended)
        if alike and len(ended) >= MOST_REFUSED and not self._finished():
            raise UserError(
                f"all {len(ended)} trials so far failed for the same reason: {reason}\nIf it is the config, start a "
                "new sweep. If not, remove outcome.json from the folders of these trials, and continue this one"
            )

    def _finish(self, one: Running, outcome: Outcome) -> None:
        with self.folder.locked():
            self.folder.finish(one.trial, outcome)
            self._recorded(one.trial)
        self.running.remove(one)

    def _recorded(self, trial: Trial) -> None:
        """Process the end of a trial."""
        trials = self.folder.trials()
        self.search.follow(trials)
        self.display.finished(trial, trials)


def stop(processes: Sequence[Any]) -> None:
    """Send SIGTERM, on which a training saves and exits, then SIGKILL to what remains after the grace period."""
    until = time.monotonic() + GRACE
    for process in processes:
        if os.name != "nt":  # on Windows this would not let it save; that its standard input has ended must do
            process.terminate()
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _reason(trial: Trial) -> str:
    """The message of a failed trial: the last thing its process printed, without the traceback above it."""
    with contextlib.suppress(OSError, ValueError):
        text = read_text(trial.run.path / ERRORS).strip()
        if "error: " in text and "Traceback (most recent call last)" not in text:
            return text[text.index("error: ") + len("error: ") :]
        if text:
            return text.splitlines()[-1]
    return f"its process failed; see {trial.run.log}"
