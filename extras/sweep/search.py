"""Which values a trial tries, and whether to prune it: the grid's next point, or Optuna's choice.

A choice depends only on the sweep's seed, the trial's number and the results so far. It has no other state, so a
sweep that was killed makes the same choices as an uninterrupted one.
"""

import contextlib
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from extras.sweep.spaces import Space, combinations, shown
from extras.sweep.sweep_folder import Spec, Trial
from utils.errors import UserError
from utils.extras import need_package

if TYPE_CHECKING:
    import optuna
    from optuna.study import Study


def direction(spec: Spec) -> Literal["minimize", "maximize"]:
    return "minimize" if spec.minimise else "maximize"


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
    """The trials so far as an in-memory Optuna study; without one for a plain grid."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.points = list(combinations(spec.spaces)) if spec.sampler is None else []
        self._seen: dict[int, _Seen] = {}
        self._study: Study | None = None
        if spec.sampler or spec.pruner:
            import optuna

            optuna.logging.set_verbosity(optuna.logging.WARNING)
            # the name determines a trial's bracket in hyperband
            self._study = optuna.create_study(study_name="sweep", direction=direction(spec), pruner=_pruner(spec))

    def choose(self, number: int, trials: Sequence[Trial]) -> dict[str, str]:
        """The values of the new trial with this number, given all of these trials."""
        if self.spec.sampler is None:
            return dict(override.split("=", 1) for override in self.points[number])
        assert self._study is not None
        self.follow(trials)
        with _quiet():
            self._study.sampler = _sampler(self.spec.sampler, self.spec.seed, number)
            trial = self._study.ask(_distributions(self.spec))
        self._seen[number] = _Seen(trial)
        return {space.key: _text(trial.params[space.key]) for space in self.spec.spaces}

    def follow(self, trials: Sequence[Trial]) -> None:
        """Update with what these trials have done since the last call. trials: all so far, in order of number."""
        if self._study is None:
            return
        for trial in trials:
            if trial.number not in self._seen:
                self._seen[trial.number] = self._known(trial)
            seen = self._seen[trial.number]
            if trial.outcome is not None and not seen.told:
                self.pruned_at(trial)
                self._tell(seen, trial)

    def pruned_at(self, trial: Trial) -> int | None:
        """The first epoch at which the pruner would stop this trial; None: never."""
        if self._study is None or self.spec.pruner is None or trial.number not in self._seen:
            return None
        seen = self._seen[trial.number]
        values = trial.measured(self.spec.value_name)
        if trial.outcome is not None:
            values = values[: trial.outcome.epochs]
        with _quiet():
            for epoch in range(seen.epochs + 1, len(values) + 1):
                seen.trial.report(values[epoch - 1], epoch)
                seen.epochs = epoch
                # the last epoch is not worth pruning: there is nothing left to save
                if seen.trial.should_prune() and epoch < self.spec.epochs and seen.pruned_at is None:
                    seen.pruned_at = epoch
                    break
        return seen.pruned_at

    def _known(self, trial: Trial) -> _Seen:
        """A trial started by another coordinator on this folder, or by this sweep before it was killed."""
        assert self._study is not None
        with _quiet():
            self._study.sampler = _sampler("random", self.spec.seed, trial.number)
            self._study.enqueue_trial(_params(self.spec, trial))
            return _Seen(self._study.ask(_distributions(self.spec)))

    def _tell(self, seen: _Seen, trial: Trial) -> None:
        from optuna.trial import TrialState

        outcome = trial.outcome
        assert self._study is not None
        assert outcome is not None
        with _quiet():
            if outcome.state == "complete":
                self._study.tell(seen.trial, outcome.value)
            else:
                self._study.tell(seen.trial, state=TrialState.PRUNED if outcome.state == "pruned" else TrialState.FAIL)
        seen.told = True


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


def distribution(space: Space) -> "optuna.distributions.BaseDistribution":
    """How Optuna draws a value. Consecutive integers are numbers; other values are unordered categories."""
    from optuna import distributions

    if space.finite:
        if ".." in space.text:
            return distributions.IntDistribution(int(space.values[0]), int(space.values[-1]))
        return distributions.CategoricalDistribution(space.values)
    if space.integer:
        return distributions.IntDistribution(int(space.low), int(space.high), log=space.log)
    return distributions.FloatDistribution(space.low, space.high, log=space.log)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else shown(value)


def _distributions(spec: Spec) -> dict[str, "optuna.distributions.BaseDistribution"]:
    return {space.key: distribution(space) for space in spec.spaces}


def _params(spec: Spec, trial: Trial) -> dict[str, Any]:
    """A trial's values as Optuna represents them."""
    return {key: _value(given, trial.values[key]) for key, given in _distributions(spec).items()}


def frozen(spec: Spec, trial: Trial) -> "optuna.trial.FrozenTrial":
    """A finished trial as Optuna records it."""
    import optuna

    states = optuna.trial.TrialState
    outcome = trial.outcome
    assert outcome is not None
    complete = outcome.state == "complete"
    measured = trial.measured(spec.value_name)[: outcome.epochs]
    return optuna.trial.create_trial(
        state=states.COMPLETE if complete else states.PRUNED if outcome.state == "pruned" else states.FAIL,
        params=_params(spec, trial),
        distributions=_distributions(spec),
        value=outcome.value if complete else None,
        intermediate_values=dict(enumerate(measured, start=1)),
        user_attrs={"run": trial.name, **({"reason": outcome.reason} if outcome.reason else {})},
    )


def _value(given: "optuna.distributions.BaseDistribution", text: str) -> Any:
    from optuna import distributions

    if isinstance(given, distributions.IntDistribution):
        return int(text)
    return float(text) if isinstance(given, distributions.FloatDistribution) else text


class _NoLock:
    """The sweep's own lock is held: Optuna's would be left behind by a killed process."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def write_journal(path: Path, spec: Spec, trials: Sequence[Trial]) -> None:
    """Update Optuna's journal, for optuna.load_study and its dashboard; the sweep itself never reads it.

    An unreadable journal, as left by a full disk, is rewritten.
    """
    for _ in range(2):
        try:
            return _append_to_journal(path, spec, trials)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error
        except (ValueError, KeyError, RuntimeError):
            path.unlink(missing_ok=True)
    return None


def _append_to_journal(path: Path, spec: Spec, trials: Sequence[Trial]) -> None:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    with _quiet():
        storage = JournalStorage(JournalFileBackend(str(path), lock_obj=_NoLock()))  # type: ignore[arg-type]
        study = optuna.create_study(study_name="sweep", direction=direction(spec), storage=storage, load_if_exists=True)
        there = {trial.user_attrs.get("run") for trial in study.get_trials(deepcopy=False)}
        for trial in trials:
            if trial.outcome is not None and trial.name not in there:
                study.add_trial(frozen(spec, trial))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings about experimental features of Optuna."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield
