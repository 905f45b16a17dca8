"""The spaces of a sweep: KEY=SPACE on the command line, checked like overrides before anything runs.

a,b,c       these values, each JSON or a plain string
0..4        the integers 0, 1, 2, 3, 4
lin:a..b    numbers from a to b, uniformly
log:a..b    the same, log-uniformly
"""

import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from utils.config import LoadedConfig, load_config
from utils.errors import ConfigError, UserError
from utils.schema import Config, validation_names
from utils.text import OVERRIDE

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
INTEGERS = re.compile(r"([+-]?\d+)\.\.([+-]?\d+)")
NUMBERS = re.compile(rf"(lin|log):({NUMBER})\.\.({NUMBER})")
# also malformed ones: "0..", "0 .. 4", "lgo:1..2"; a path such as "../data" is not one
LIKE_RANGE = re.compile(r"(\w+:)?\s*[-+.\d][^,/]*\.\.[^,/]*")
# a trial's location and its value must mean the same in all trials
NOT_SEARCHED = {"name", "trainer.save_dir", "trainer.monitor", "$schema", "variables", "trainer"}
REPLICATES = ("seed", "fold")
"""The last words of keys whose values are repetitions of one experiment."""
MOST_TRIALS = 10_000
MOST_CHECKED = 64
"""Maximum number of grid points to check before it starts; each value is checked in any case."""


@dataclass(frozen=True)
class Space:
    """The values to try for a config key."""

    key: str
    text: str
    """As typed."""
    values: tuple[str, ...] = ()
    """Values of a finite space, as overrides; empty for a range of numbers."""
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False
    """Whether the key accepts only integers."""

    @property
    def finite(self) -> bool:
        return bool(self.values)

    @property
    def replicates(self) -> bool:
        return self.key.rpartition(".")[2] in REPLICATES

    def override(self, value: str) -> str:
        return f"{self.key}={value}"

    def ends(self) -> tuple[str, ...]:
        """The values to check: all of a finite space, or both ends of a range."""
        if not self.finite:
            return shown(self.low), shown(self.high)
        return (self.values[0], self.values[-1]) if INTEGERS.fullmatch(self.text) else self.values


def parse_spaces(words: Sequence[str]) -> tuple[list[str], list[Space]]:
    """The overrides that apply to every trial, and the spaces. Raises ConfigError for anything else."""
    fixed: list[str] = []
    spaces: list[Space] = []
    for word in words:
        if not OVERRIDE.match(word):
            raise ConfigError(
                f"invalid space {word!r}; expected KEY=SPACE, e.g. seed=0..4 or optimizer.args.lr=log:1e-4..1e-1"
            )
        space = parse_space(word)
        if any(space.key == other.key for other in spaces) or any(one.startswith(f"{space.key}=") for one in fixed):
            raise ConfigError(f"{word}: {space.key} is given twice")
        if space.finite and len(space.values) == 1 and not INTEGERS.fullmatch(space.text):
            fixed.append(word)
            continue
        if space.key in NOT_SEARCHED:
            raise ConfigError(f"space {word}: {space.key} must be the same in all trials of a sweep")
        spaces.append(space)
    return fixed, spaces


def parse_space(word: str) -> Space:
    """Parse KEY=SPACE. Raises ConfigError."""
    key, _, text = word.partition("=")
    text = text.strip()
    if LIKE_RANGE.fullmatch(text):
        return _range(key, text)
    values = _split(text)
    if len(values) > 1 and "" in values:
        raise ConfigError(f"space {word}: empty value between two commas")
    if twice := [value for value in values if values.count(value) > 1]:
        raise ConfigError(f"space {word}: the value {twice[0]} is given twice")
    return Space(key, text, tuple(values))


def _range(key: str, text: str) -> Space:
    """Parse a..b, lin:a..b or log:a..b."""
    if found := INTEGERS.fullmatch(text):
        first, last = int(found[1]), int(found[2])
        if first <= last < first + MOST_TRIALS:
            return Space(key, text, tuple(map(str, range(first, last + 1))))
    elif found := NUMBERS.fullmatch(text):
        low, high, log = float(found[2]), float(found[3]), found[1] == "log"
        if low < high < math.inf and (low > 0 or not log):
            return Space(key, text, low=low, high=high, log=log)
    raise ConfigError(
        f"space {key}={text}: expected integers as in 0..4, at most {MOST_TRIALS:,} of them, or numbers as in lin:0..1 "
        "or log:1e-4..1e-1, the smaller one first, and above 0 after log"
    )


def _split(text: str) -> list[str]:
    """Split at commas outside JSON lists, objects and strings."""
    parts: list[str] = []
    for piece in text.split(","):
        if parts and _is_open(parts[-1]):
            parts[-1] += f",{piece}"
        else:
            parts.append(piece)
    return [part.strip() for part in parts]


def _is_open(text: str) -> bool:
    """Whether a text begins as JSON, but is not complete."""
    try:
        json.loads(text)
    except ValueError:
        return text.lstrip().startswith(("[", "{", '"'))
    return False


def shown(value: float) -> str:
    """A number in override notation, whole numbers without a point."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


def check_spaces(config: Path, fixed: Sequence[str], spaces: Sequence[Space]) -> tuple[LoadedConfig, list[Space]]:
    """Load the config with each value of each space, and the other spaces at their first; then all of a small grid.

    Returns the config with the first value of each, and the spaces, now marked if only integers are accepted.
    Raises ConfigError.
    """
    first = [space.override(space.ends()[0]) for space in spaces]
    loaded = load_config(config, [*fixed, *first])
    checked = []
    for place, space in enumerate(spaces):
        before, after = [*fixed, *first[:place]], first[place + 1 :]
        for value in space.ends()[1:]:
            _check(config, [*before, space.override(value), *after], cause=space.override(value))
        if not space.finite:
            fraction = space.override(repr(space.low + 0.387 * (space.high - space.low)))
            try:
                load_config(config, [*before, fraction, *after])
            except ConfigError:
                if not (space.low.is_integer() and space.high.is_integer()):
                    raise
                space = replace(space, integer=True)
        checked.append(space)
    if 0 < math.prod(len(space.values) for space in spaces) <= MOST_CHECKED:
        for values in combinations(spaces):
            point = [f"{key}={value}" for key, value in values.items()]
            _check(config, [*fixed, *point], cause=" ".join(point))
    return loaded, checked


def _check(config: Path, overrides: Sequence[str], *, cause: str) -> None:
    """Raise ConfigError if the config is invalid with these overrides. cause: those being tried, for the message."""
    try:
        load_config(config, overrides)
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if f"override {cause}" in text else f"with {cause}: {text}") from error


def check_monitor(config: Config, spaces: Sequence[Space]) -> None:
    """Raise UserError if the spaces change the monitored loss itself, so that its values cannot be compared."""
    monitored = config.trainer.monitored_name
    for space in spaces:
        key = space.key
        # the weight of one of several losses changes their sum, but not its own value
        changed = [name for name in config.losses if key == "loss" or f"{key}.".startswith(f"loss.{name}.")]
        names = ["loss", *(name for name in changed if key != f"loss.{name}.weight")]
        names += [each for name in names for each in validation_names(name, config.validations)]
        if f"{key}.".startswith("loss.") and monitored in names:
            raise UserError(
                f"space {key}={space.text}: trials with different losses cannot be compared by {monitored}; monitor a "
                'metric instead, e.g. trainer.monitor="max val_accuracy"'
            )


def combinations(spaces: Sequence[Space]) -> Iterator[dict[str, str]]:
    """The values of each point of a grid by key, the last space changing fastest."""
    for values in itertools.product(*(space.values for space in spaces)):
        yield dict(zip((space.key for space in spaces), values, strict=True))


def grid_size(spaces: Sequence[Space]) -> int:
    """Number of grid points. Raises UserError if there are too many, or a space is a range."""
    endless = [space for space in spaces if not space.finite]
    if endless:
        raise UserError(
            f"{endless[0].key}={endless[0].text} has infinitely many values; set how many to try with --trials N"
        )
    size = math.prod(len(space.values) for space in spaces)
    if size > MOST_TRIALS:
        raise UserError(f"the grid has {size:,} points; --trials N tries N of them")
    return size


def check_trials(spaces: Sequence[Space], trials: int) -> None:
    """Raise UserError if a search would choose seeds or folds, or repeat some of too few combinations."""
    for space in spaces:
        if space.replicates:
            raise UserError(
                f"space {space.key}={space.text}: --trials would pick the luckiest one. Leave --trials out: a grid "
                "compares the means. Or search first, and then repeat the best trial: "
                f"python sweep.py -c SWEEP/best.json {space.key}={space.text}"
            )
    size = math.prod(len(space.values) for space in spaces)  # 0 if one is a range
    if 0 < size < trials:
        raise UserError(f"--trials {trials}: there are only {size} combinations; a grid runs each of them once")
