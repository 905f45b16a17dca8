"""Which values a trial tries, and whether to prune it: the grid's next point, or Optuna's choice.

A choice depends only on the sweep's seed, the trial's number and the results so far. It has no other state, so a
sweep that was killed makes the same choices as an uninterrupted one.
"""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from extras.sweep.spaces import INTEGERS, Space, combinations, shown
from extras.sweep.sweep_folder import Outcome, Spec, Trial
from utils.errors import UserError, os_errors_as
from utils.extras import need_package
from utils.files import replace

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.study import Study


def need_optuna(what: str) -> None:
    """Raises UserError if Optuna is not installed."""
    need_package("optuna", f"{what} needs Optuna, which is not installed", advice=". A grid works without it")


@dataclass
class _Seen:
    """A trial as known to the study."""

    trial: "optuna.Trial"
    epochs: int = 0
    """Reported epochs."""
    pruned_at: int | None = None
    told: bool = False


class Search:
    """The trials so far as an in-memory Optuna study, which a plain grid does not need.

    with_study: make one in any case.
    """

    def __init__(self, spec: Spec, *, with_study: bool = False) -> None:
        self.spec = spec
        self.points = list(combinations(spec.spaces)) if spec.sampler is None else []
        self.study: Study | None = None
        self.distributions: dict[str, BaseDistribution] = {}
        self._seen: dict[int, _Seen] = {}
        if spec.sampler or spec.pruner or with_study:
            import optuna

            optuna.logging.set_verbosity(optuna.logging.WARNING)
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.distributions = {space.key: distribution(space) for space in spec.spaces}
            # the name determines a trial's bracket in hyperband
            direction = optuna.study.StudyDirection.MINIMIZE if spec.minimise else optuna.study.StudyDirection.MAXIMIZE
            self.study = optuna.create_study(study_name="sweep", direction=direction, pruner=_pruner(spec))

    def choose(self, number: int, trials: Sequence[Trial]) -> dict[str, str]:
        """The values of the new trial with this number, given all of these trials."""
        if self.spec.sampler is None:
            return self.points[number]
        assert self.study is not None
        self.follow(trials)
        self.study.sampler = _sampler(self.spec.sampler, self.spec.seed, number)
        trial = self.study.ask(self.distributions)
        self._seen[number] = _Seen(trial)
        chosen = {key: trial.params[key] for key in self.spec.keys}
        return {key: value if isinstance(value, str) else shown(value) for key, value in chosen.items()}

    def follow(self, trials: Sequence[Trial]) -> None:
        """Update with what these trials have done since the last call. trials: all so far, in order of number."""
        if self.study is None:
            return
        for trial in trials:
            if trial.number not in self._seen:  # another coordinator's, or this sweep's before it was killed
                lows: dict[str, Any] = {key: getattr(kind, "low", "") for key, kind in self.distributions.items()}
                self.study.enqueue_trial({key: type(low)(trial.values[key]) for key, low in lows.items()})
                self._seen[trial.number] = _Seen(self.study.ask(self.distributions))
            seen = self._seen[trial.number]
            if trial.outcome is not None and not seen.told:
                self.pruned_at(trial)
                _tell(self.study, seen.trial, trial.name, trial.outcome)
                seen.told = True

    def pruned_at(self, trial: Trial) -> int | None:
        """The first epoch at which the pruner would stop this trial; None: never."""
        seen = self._seen.get(trial.number)
        if seen is None:
            return None
        values = trial.measured(self.spec.value_name)[: seen.pruned_at]  # a resumed sweep knows no later ones
        if trial.outcome is not None:
            values = values[: trial.outcome.epochs]
        for epoch in range(seen.epochs + 1, len(values) + 1):
            seen.trial.report(values[epoch - 1], epoch)
            seen.epochs = epoch
            # the last epoch is not worth pruning: there is nothing left to save
            if seen.trial.should_prune() and epoch < self.spec.epochs:
                seen.pruned_at = epoch
                break
        return seen.pruned_at


def _tell(study: "Study", asked: "optuna.Trial", run: str, outcome: Outcome) -> None:
    from optuna.trial import TrialState

    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    asked.set_user_attr("run", run)
    if outcome.reason:
        asked.set_user_attr("reason", outcome.reason)
    study.tell(asked, outcome.value if outcome.state == "complete" else None, states[outcome.state])


def _pruner(spec: Spec) -> "optuna.pruners.BasePruner":
    import optuna

    if spec.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5)
    if spec.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=spec.epochs)
    return optuna.pruners.NopPruner()


def _sampler(name: str, seed: int, number: int) -> "optuna.samplers.BaseSampler":
    """A sampler seeded for each trial, whichever process asks."""
    import optuna

    digest = hashlib.sha256(f"{seed}:{number}".encode()).digest()
    own = int.from_bytes(digest[:4], "big")
    if name == "random":
        return optuna.samplers.RandomSampler(seed=own)
    # constant_liar: avoids values that other trials are trying at the moment
    return optuna.samplers.TPESampler(seed=own, constant_liar=True)


def distribution(space: Space) -> "BaseDistribution":
    """How Optuna draws a value. Consecutive integers are numbers; other values are unordered categories."""
    from optuna import distributions

    if space.finite:
        if INTEGERS.fullmatch(space.text):
            return distributions.IntDistribution(int(space.values[0]), int(space.values[-1]))
        return distributions.CategoricalDistribution(space.values)
    if space.integer:
        return distributions.IntDistribution(int(space.low), int(space.high), log=space.log)
    return distributions.FloatDistribution(space.low, space.high, log=space.log)


def write_journal(path: Path, study: "Study") -> None:
    """Write the trials of a study as Optuna's journal, for optuna.load_study and its dashboard."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    with os_errors_as(UserError, f"cannot write {path}"), TemporaryDirectory(dir=path.parent) as folder:
        file = Path(folder) / path.name
        storage = JournalStorage(JournalFileBackend(str(file), JournalFileOpenLock(str(file))))
        copy = optuna.create_study(study_name="sweep", direction=study.direction, storage=storage)
        copy.add_trials(study.get_trials(deepcopy=False))
        replace(file, path)


def study_of(spec: Spec, trials: Sequence[Trial]) -> "Study":
    """Trials that have ended, as a study."""
    search = Search(spec, with_study=True)
    search.follow(trials)
    assert search.study is not None
    return search.study


def importances(study: "Study") -> dict[str, float]:
    """How much each key determines whether a trial is good, by PED-ANOVA over the complete trials; the sum is 1.

    Empty if the trials do not differ enough to tell.
    """
    import optuna

    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna warns of such trials
        found = optuna.importance.get_param_importances(study, evaluator=evaluator, normalize=False)
    total = sum(found.values())
    return {key: value / total for key, value in found.items()} if total else {}
