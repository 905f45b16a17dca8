"""Parts of the console output: a table that fits the terminal, and speed and time left that are right."""

import math
import re
from collections.abc import Callable, Iterator

import pytest

from base.training.progress import Progress
from base.training.training_log import TrainingLog
from logger.console import STYLES, Console, styled
from logger.table import EpochTable
from logger.writers import Writers
from utils.distributed.process_group import ProcessGroup
from utils.schema import TrainerConfig
from utils.text import duration, size

NAMES = ["loss", "accuracy", "top_k_accuracy", "f1_macro", "mean_absolute_percentage_error_of_everything", "x"]
VALUES = [1.234567, 0.4567, math.nan, 1e-5, -math.inf, -1.25e100]


def table(count: int, *, epochs: int = 100, width: int = 80, rows: int = 1, valid: bool = True) -> list[str]:
    """The plain lines of some epochs with the first so many of the names above."""
    made = EpochTable(epochs)
    heads = ("train", "valid") if valid else ("",)
    values = {name: dict.fromkeys(heads, VALUES[index]) for index, name in enumerate(NAMES[:count])}
    lines: list[str] = []
    for epoch in range(1, rows + 1):
        lines += made.row(epoch, values, seconds=3725, best=epoch % 2 == 1, width=width)
    for style in STYLES:
        mark = styled("", style).removesuffix("\x1b[0m")
        lines = [line.replace(mark, "").replace("\x1b[0m", "") for line in lines]
    return lines


@pytest.mark.parametrize("width", [42, 60, 80, 120, 250])
@pytest.mark.parametrize("count", range(1, len(NAMES) + 1))
@pytest.mark.parametrize("epochs", [5, 1000])
def test_no_line_of_the_table_is_wider_than_the_terminal(width: int, count: int, epochs: int) -> None:
    lines = table(count, width=width, epochs=epochs, rows=2)
    assert max(map(len, lines)) < width
    assert "\x1b" not in "".join(lines)
    shown = " ".join(lines).split()
    left_out = int(lines[0].split()[0]) if "more value" in lines[0] else 0
    for text in ["1.235", "0.4567", "nan", "1.000e-05", "-inf", "-1.2e+100"][: count - left_out]:
        assert shown.count(text) == 4, text
    assert not left_out or width < 150


def test_of_ten_values_the_monitored_one_is_among_those_that_fit() -> None:
    values = {name: {"train": 1.0, "valid": 2.0} for name in ["loss", *(f"metric_{number}" for number in range(9))]}
    made = EpochTable(5, monitored="val_metric_8")
    lines = list(made.row(1, values, seconds=1, best=False, width=80))
    assert "7 more values in metrics.jsonl" in lines[0]
    assert re.findall(r"[a-z]+_?\d*", lines[1].partition("[2m")[2])[:3] == ["loss", "metric_8", "metric_0"]
    assert len(list(made.row(2, values, seconds=1, best=False, width=80))) == 1
    assert len(list(EpochTable(5).row(1, values, seconds=1, best=False, width=260))) == 3, "titles, header and one line"


def test_best_is_two_columns_from_the_time_if_there_is_room() -> None:
    assert table(3, epochs=5, width=80)[-1].endswith("1h02m  best")
    assert table(3, epochs=5, width=78)[-1].endswith("1h02m best")


def test_three_values_of_training_and_validation_fit_in_one_line_of_80_columns() -> None:
    assert table(3, rows=2) == [
        "               loss              accuracy         top_k_accuracy",
        "  epoch     train     valid     train     valid     train     valid   time",
        "  1/100     1.235     1.235    0.4567    0.4567       nan       nan  1h02m best",
        "  2/100     1.235     1.235    0.4567    0.4567       nan       nan  1h02m",
    ]


def test_values_without_validation_have_one_column_each() -> None:
    assert table(2, epochs=5, valid=False) == [
        "epoch       loss   accuracy    time",
        "  1/5      1.235     0.4567   1h02m  best",
    ]


def test_the_header_is_repeated_when_it_has_left_the_screen_or_the_columns_change() -> None:
    made = EpochTable(100)
    seen = []
    for epoch in range(1, 65):
        lines = list(made.row(epoch, {"loss": {"": 1.0}}, seconds=1, best=False, width=80 if epoch < 62 else 79))
        seen += [epoch] * ("epoch" in lines[0])
        for _ in range(10 if epoch == 40 else 0):
            made.interrupted()
    assert seen == [1, 31, 51]
    wider = list(made.row(65, {"loss": {"": 1.0}, "accuracy": {"": 1.0}}, seconds=1, best=False, width=80))
    assert "accuracy" in wider[0]


def test_a_value_that_some_epochs_measure_keeps_its_columns() -> None:
    made = EpochTable(9)
    loss = {"train": 1.0, "valid": 2.0}
    rows = [
        list(made.row(epoch, values, seconds=1, best=False, width=80))
        for epoch, values in enumerate(
            [
                {"loss": loss, "heat": {"": 3.0}},
                {"loss": loss, "heat": {"train": 3.0, "valid": 4.0}, "val_bleu": {"": 5.0}},
                {"loss": loss, "heat": {"": 3.0}},
                {"loss": loss, "val_heat": {"": 4.0}},
                {"loss": loss, "val_bleu": {"": 5.0}, "val_heat": {"": 4.0}},
            ],
            start=1,
        )
    ]
    assert [len(lines) for lines in rows] == [3, 3, 1, 3, 1], "a header for a new column alone"
    assert rows[1][2].split()[1:6] == ["1.000", "2.000", "3.000", "4.000", "5.000"]
    assert rows[2][0].split()[1:4] == ["1.000", "2.000", "3.000"]
    assert len(rows[2][0]) == len(rows[1][2]), "the time is in its column"


def test_a_line_within_each_epoch_does_not_repeat_the_header_each_time() -> None:
    made, headers = EpochTable(100), 0
    for epoch in range(1, 31):
        made.interrupted()
        headers += len(list(made.row(epoch, {"loss": {"": 1.0}}, seconds=1, best=False, width=80))) - 1
    assert headers == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1:00"),
        (3599, "59:59"),
        (3600, "1h00m"),
        (86399, "23h59m"),
        (180000, "2d02h"),
    ],
)
def test_a_duration_takes_six_columns(seconds: float, text: str) -> None:
    assert duration(seconds) == text
    assert len(text) <= 6


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0312, "31 ms"), (0.9994, "999 ms"), (0.9996, "1.0 s"), (3.14, "3.1 s"), (59.96, "1:00")]
)
def test_the_time_of_an_epoch_is_finer(seconds: float, text: str) -> None:
    assert duration(seconds, fine=True) == text


def test_a_size_is_written_with_one_unit_and_a_space() -> None:
    assert [size(count) for count in (0, 404_000, 1_600_000, 5 * 10**9)] == ["0 B", "404 kB", "1.6 MB", "5.0 GB"]


class Clock:
    """The clock of tqdm and of the training log."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("tqdm.std.time", lambda: self.now)
        monkeypatch.setattr("base.training.training_log.time", self)

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Run:
    """A run without training, of 100 steps of 10 samples per epoch, and what its log says of speed and time left."""

    def __init__(self, clock: Clock, *, epochs: int) -> None:
        self.clock = clock
        self.progress = Progress()
        settings = TrainerConfig(epochs=epochs)
        self.console = Console(2)
        self.log = TrainingLog(self.console, Writers({}), settings, ProcessGroup())

    def begin_epoch(self, *, done: int = 0) -> None:
        self.progress.epoch_steps = done
        self.log.begin_epoch(self.progress, 100)

    def steps(self, count: int, *, seconds: float) -> None:
        """This many steps, each of this many seconds."""
        for _ in range(count):
            self.clock.now += seconds
            self.log.step(0.5, 10)

    def end_epoch(self, *, validation: float = 0.0) -> None:
        self.log.end_training()
        self.progress.epochs += 1
        self.clock.now += validation

    def line(self) -> str:
        """Speed and time left; empty where they are unknown."""
        return re.sub(r"epoch \d/\d  step +\d+/100( +loss [\d.]+ *)?", "", self.log._progress_line()).strip()


@pytest.fixture
def make_run(clock: Clock) -> Iterator[Callable[..., Run]]:
    """Makes a run whose bar is removed after the test: tqdm would draw later ones a line below it."""
    runs: list[Run] = []

    def make(**settings: int) -> Run:
        runs.append(Run(clock, **settings))
        return runs[-1]

    yield make
    for run in runs:
        run.console.clear()


def test_time_left_comes_from_the_steps_of_this_process(clock: Clock, make_run: Callable[..., Run]) -> None:
    """As after a resume in mid-epoch: 60 of 100 steps were done before, by another process."""
    run = make_run(epochs=3)
    run.begin_epoch(done=60)
    clock.now += 0.1
    assert run.line() == ""
    clock.now -= 0.1
    run.steps(20, seconds=0.5)
    assert run.line() == "20.0 samples/s  ETA 00:10, run 01:50"


def test_the_time_left_includes_validation_once_it_was_measured(make_run: Callable[..., Run]) -> None:
    run = make_run(epochs=2)
    run.begin_epoch()
    run.steps(100, seconds=0.5)
    assert run.line() == "20.0 samples/s  ETA 00:00, run 00:50"
    run.end_epoch(validation=7)
    run.begin_epoch()
    run.steps(20, seconds=0.5)
    assert run.line() == "20.0 samples/s  ETA 00:40, run 00:47"


def test_a_first_step_that_compiles_is_soon_forgotten(make_run: Callable[..., Run]) -> None:
    run = make_run(epochs=1)
    run.begin_epoch()
    run.steps(1, seconds=90)
    run.steps(39, seconds=1)
    assert run.line() == "10.0 samples/s  ETA 01:00, run 01:00"


def test_the_time_left_follows_a_change_of_speed(make_run: Callable[..., Run]) -> None:
    run = make_run(epochs=3)
    for seconds in (1.0, 1.0):
        run.begin_epoch()
        run.steps(100, seconds=seconds)
        run.end_epoch()
    run.begin_epoch()
    run.steps(50, seconds=0.25)
    assert run.line() == "40.0 samples/s  ETA 00:12, run 00:12"
