"""The spaces of a sweep: KEY=SPACE on the command line, checked like overrides before anything runs.

a,b,c       these values, each JSON or a plain string
0..4        the integers 0, 1, 2, 3, 4
lin:a..b    numbers from a to b, uniformly
log:a..b    the same, log-uniformly
"""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.config import LoadedConfig, load_config
from utils.errors import ConfigError, UserError
from utils.schema import Config, validation_names
from utils.text import OVERRIDE, closest

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
INTEGERS = re.compile(r"([+-]?\d+)\.\.([+-]?\d+)")
ANY_RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})")
SCALED = re.compile(r"(\w+):(.*\.\..*)")
# malformed ranges: "0..", "0..x", "0 .. 4"; a path such as "../data" is not one
MEANT_AS_RANGE = re.compile(r"([^/\\\"\[{]*?)\s*\.\.+\s*([^/\\\"\]}]*)")
MEANT_AS_SCALED = re.compile(r"(lin|log)\s*[:(\s]\s*(.*?)\)?", re.IGNORECASE)
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
    where = f"space {word}"
    scaled = SCALED.fullmatch(text)
    if scaled:
        return _scaled(key, text, *scaled.groups(), where=where)
    if integers := INTEGERS.fullmatch(text):
        low, high = (int(end) for end in integers.groups())
        if high < low:
            raise ConfigError(f"{where}: the range is empty: {low} is greater than {high}; did you mean {high}..{low}?")
        if high - low >= MOST_TRIALS:
            advice = "" if key.rpartition(".")[2] in REPLICATES else f"; lin:{text} with --trials samples them"
            raise ConfigError(f"{where}: {high - low + 1:,} values are too many, the most are {MOST_TRIALS:,}{advice}")
        return Space(key, text, tuple(map(str, range(low, high + 1))))
    _check_meant(text, where=where)
    values = _split(text)
    if len(values) > 1 and "" in values:
        raise ConfigError(f"{where}: empty value between two commas")
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        raise ConfigError(f"{where}: the value {twice[0]} is given twice")
    return Space(key, text, tuple(values))


def _check_meant(text: str, *, where: str) -> None:
    """Raise ConfigError for a malformed range."""
    if meant := MEANT_AS_SCALED.fullmatch(text):
        scale, ends = meant[1].lower(), meant[2].replace(" ", "")
        found = re.fullmatch(rf"({NUMBER})(?:\.\.|[,:;-])({NUMBER})", ends)
        example = f"{found[1]}..{found[2]}" if found else "0.001..0.1"
        raise ConfigError(f"{where}: expected two numbers with two dots between them, as in {scale}:{example}")
    meant = MEANT_AS_RANGE.fullmatch(text)
    if not meant:
        return
    low, high = meant.groups()
    numbers = [end for end in (low, high) if re.fullmatch(NUMBER, end)]
    if len(numbers) == 2 and all(re.fullmatch(r"[+-]?\d+", end) for end in numbers):
        raise ConfigError(f"{where}: did you mean {low}..{high}?")
    if len(numbers) == 2:
        raise ConfigError(
            f"{where}: a..b counts integers; for other numbers write lin:{low}..{high} or log:{low}..{high}"
        )
    if numbers:
        raise ConfigError(f"{where}: expected two integers with two dots between them and nothing else, as in 0..4")


def _scaled(key: str, text: str, scale: str, ends: str, *, where: str) -> Space:
    """Parse lin:a..b or log:a..b."""
    if scale not in ("lin", "log"):
        near = closest(scale, ["lin", "log"]) or "lin"
        raise ConfigError(f'{where}: unknown scale "{scale}"; did you mean {near}:{ends}?')
    found = ANY_RANGE.fullmatch(ends)
    if not found:
        raise ConfigError(f"{where}: expected two numbers, as in {scale}:0.001..0.1, got {ends!r}")
    low, high = (float(end) for end in found.groups())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ConfigError(f"{where}: a number is too large")
    if high <= low:
        swapped = f"; did you mean {scale}:{shown(high)}..{shown(low)}?" if high < low else ""
        raise ConfigError(f"{where}: the range is empty: {shown(low)} is not less than {shown(high)}{swapped}")
    if scale == "log" and low <= 0:
        raise ConfigError(f"{where}: a logarithmic range must start above 0, got {shown(low)}; or use lin:{ends}")
    return Space(key, text, low=low, high=high, log=scale == "log")


def _split(text: str) -> list[str]:
    """Split at commas outside brackets and quotes."""
    parts = [""]
    depth = 0
    quoted = escaped = False
    for letter in text:
        if quoted:
            quoted = escaped or letter != '"'
            escaped = letter == "\\" and not escaped
        elif letter == '"':
            quoted = True
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == "," and depth <= 0:
            parts.append("")
            continue
        parts[-1] += letter
    return [part.strip() for part in parts]


def shown(value: float) -> str:
    """A number in override notation, whole numbers without a point."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


def check_spaces(config: Path, fixed: Sequence[str], spaces: Sequence[Space]) -> tuple[LoadedConfig, list[Space]]:
    """Load the config with each value of each space, and the other spaces at their first value.

    Returns the config with the first value of each, and the spaces, now marked if only integers are accepted.
    Raises ConfigError with all mistakes.
    """
    first = [space.override(space.ends()[0]) for space in spaces]
    errors: dict[str, None] = {}
    loaded = None
    try:
        loaded = load_config(config, [*fixed, *first])
    except ConfigError as error:
        errors[str(error)] = None
    checked = []
    for place, space in enumerate(spaces):
        overrides = [*fixed, *first]
        for value in space.ends()[1:]:
            overrides[len(fixed) + place] = space.override(value)
            if loaded is not None and (problem := _problem(config, overrides, space.override(value))):
                errors[problem] = None
        checked.append(space)
        if not space.finite and loaded is not None:
            overrides[len(fixed) + place] = space.override(repr(space.low + 0.387 * (space.high - space.low)))
            if problem := _problem(config, overrides):
                checked[-1] = _of_integers(space, problem)
    grid = math.prod(len(space.values) for space in spaces)
    if not errors and len(spaces) > 1 and 0 < grid <= MOST_CHECKED:
        for combination in combinations(spaces):
            if problem := _problem(config, [*fixed, *combination], " ".join(combination)):
                errors[problem] = None
    if errors or loaded is None:
        raise ConfigError("\n".join(errors))
    return loaded, checked


def _of_integers(space: Space, problem: str) -> Space:
    """The space, restricted to integers after a fraction was rejected. Raises ConfigError if its ends are not whole."""
    if not (space.low.is_integer() and space.high.is_integer()):
        raise ConfigError(problem)
    return Space(space.key, space.text, low=space.low, high=space.high, log=space.log, integer=True)


def _problem(config: Path, overrides: Sequence[str], cause: str = "") -> str | None:
    """The problem with these overrides, if any. cause: the override being tried, for an error elsewhere."""
    try:
        load_config(config, overrides)
    except ConfigError as error:
        text = str(error)
        return text if f"override {cause}" in text else f"with {cause}: {text}"
    return None


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


def combinations(spaces: Sequence[Space]) -> Iterator[list[str]]:
    """The overrides of each point of a grid, the last space changing fastest."""
    for values in itertools.product(*(space.values for space in spaces)):
        yield [space.override(value) for space, value in zip(spaces, values, strict=True)]


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
                f"space {space.key}={space.text}: --trials would pick the luckiest {space.key.rpartition('.')[2]}. "
                "Leave --trials out: a grid compares the means. Or search without this key, and then repeat the best "
                f"trial: python sweep.py -c SWEEP/best.json {space.key}={space.text}"
            )
    size = math.prod(len(space.values) for space in spaces)  # 0 if one is a range
    if 0 < size < trials:
        raise UserError(f"--trials {trials}: there are only {size} combinations; a grid runs each of them once")
