"""The pieces of what a terminal shows: columns that fit, bars that fit, times that are right."""

import math

import pytest

from base.training.throughput import Throughput
from logger.console import STYLES, styled
from logger.table import EpochTable
from utils.text import duration, short_number

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
    for text in ["1.235", "0.4567", "nan", "1.000e-05", "-inf", "-1.2e+100"][:count]:
        assert shown.count(text) == 4, text


def test_three_values_of_training_and_validation_stand_in_one_line_of_80_columns() -> None:
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


def test_the_header_comes_again_when_it_has_left_the_screen_or_the_columns_change() -> None:
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


def test_a_line_within_each_epoch_brings_no_header_each_time() -> None:
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


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.50"), (9.996, "10.0"), (99.96, "100"), (999.6, "1.00k"), (12345, "12.3k"), (2e12, "2000G")],
)
def test_a_speed_takes_five_columns(value: float, text: str) -> None:
    assert short_number(value) == text


def steps(pace: Throughput, count: int) -> None:
    pace.steps += count
    pace.samples += 10 * count


def test_time_left_comes_from_the_steps_that_were_seen() -> None:
    """As after a resume in mid-epoch: 60 of 100 steps were done before, by another process."""
    pace = Throughput()
    pace.begin(1000)
    assert pace.left(1001, steps=40, epochs=2, steps_per_epoch=100) is None
    assert pace.samples_per_second(1001) is None
    steps(pace, 20)
    assert pace.samples_per_second(1010) == 20
    assert pace.left(1010, steps=20, epochs=2, steps_per_epoch=100) == (10, 10 + 2 * 50)


def test_validation_counts_for_the_run_as_a_third_of_training_until_it_was_seen() -> None:
    pace = Throughput(validation_samples=120)
    pace.begin(0)
    steps(pace, 100)
    left = pace.left(50, steps=0, epochs=1, steps_per_epoch=100)  # 0.05 seconds a sample of training
    assert left == pytest.approx((0, 50 + 2 * 120 * 0.05 / 3))
    pace.end(50)
    pace.begin(57)  # 7 seconds of validation and saving
    assert pace.left(57, steps=100, epochs=1, steps_per_epoch=100) == (50, 50 + 7 + 57)
    assert pace.samples_per_second(57) is None


def test_a_first_step_that_compiles_says_nothing_of_the_others() -> None:
    pace = Throughput()
    pace.begin(0)
    steps(pace, 1)
    pace.begin_here(90)
    steps(pace, 9)
    assert pace.left(99, steps=90, epochs=0, steps_per_epoch=100) == (90, 90)
    assert pace.samples_per_second(99) == 10


def test_the_time_left_follows_a_change_of_speed() -> None:
    pace = Throughput()
    for start, end in [(0, 100), (100, 200), (200, 210)]:
        pace.begin(start)
        steps(pace, 100)
        pace.end(end)
    pace.begin(210)
    steps(pace, 50)
    assert pace.left(215, steps=50, epochs=0, steps_per_epoch=100) == (5, 5)
