"""TensorBoard's pages in a real browser, over three runs: what the board writes is what a user sees.

Needs Chromium and its driver (Debian: apt-get install chromium chromium-driver); nothing is fetched from the network.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.support.ui import WebDriverWait

import train
from extras.tensorboard import curves_address
from tests.conftest import load_script
from tests.helpers import PATIENCE, ROOT, Json, temporarily
from tests.small_data import SmallTensors
from utils.registry import DATA_LOADERS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1400,1000",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="Chromium and chromedriver are not installed (apt-get install chromium-driver)",
    ),
]

# elements of a page, those in the shadow trees of its components too
EVERYWHERE = """
const found = [];
const look = (root) => {
  found.push(...root.querySelectorAll(arguments[0]));
  root.querySelectorAll('*').forEach((element) => element.shadowRoot && look(element.shadowRoot));
};
look(document);
"""
# the texts of elements, from the top of the page to its bottom
IN_ORDER = (
    EVERYWHERE
    + """
const top = (element) => element.getBoundingClientRect().top;
return found.filter((element) => element.getClientRects().length)
  .sort((one, other) => top(one) - top(other)).map((element) => (element.displayName || element.textContent).trim());
"""
)
SORT = (
    EVERYWHERE
    + """
const [pane] = found;
const tags = pane._metrics.map((metric) => metric.info.name.tag);
pane.set('_sortByIndex', pane._hparams.length + tags.indexOf(arguments[1]));
pane.set('_sortDirection', 0);
pane._queryServer();
"""
)
# tag and run of each card, an element of this kind, in which something of another kind is drawn
DRAWN = (
    EVERYWHERE
    + """
const inside = (root) => [
  ...root.querySelectorAll(arguments[1]),
  ...[...root.querySelectorAll('*')].filter((element) => element.shadowRoot)
    .flatMap((element) => inside(element.shadowRoot)),
];
const drawn = (element) => element.getClientRects().length
  && (element.tagName !== 'IMG' || (element.complete && element.naturalWidth > 50));
return found.filter((card) => inside(card.shadowRoot).some(drawn))
  .map((card) => `${card.tag} ${card.run || ''}`.trim());
"""
)
VISIBLE = EVERYWHERE + "return found.some((element) => element.getClientRects().length);"
TEXT = EVERYWHERE + "return found.map((element) => element.textContent).join(' ');"
FETCHED = "return performance.getEntriesByType('resource').length;"
WORDS = "span, div, text, title, td, th, h3, code, p, vaadin-grid-cell-content"


QUIET = 60
"""Seconds after which a page that neither changes nor fetches anything is complete, whatever is missing on it."""


class Page:
    """What a browser shows of a TensorBoard."""

    def __init__(self, browser: Chrome, address: str) -> None:
        self.browser, self.address = browser, address

    def open(self, name: str) -> None:
        self.browser.get("about:blank")  # another fragment alone would not reload the page
        self.browser.get(f"{self.address}{name}" if name.startswith("?") else f"{self.address}#{name}")

    def until(self, missing: Callable[[], Any]) -> None:
        """Wait until nothing is missing. A page that is complete without it fails, with the text that it has."""
        before, since = "", time.monotonic()

        def found(_: Chrome) -> bool:
            nonlocal before, since
            lacking, now, text = missing(), time.monotonic(), self.text()
            content = f"{self.browser.execute_script(FETCHED)} {text}"
            if content != before:
                before, since = content, now
            where = f"{self.browser.current_url}, which has: {' '.join(text.split())}"
            assert not lacking or now - since < QUIET, f"{lacking} not found on {where}"
            return not lacking

        WebDriverWait(self.browser, PATIENCE, poll_frequency=0.2).until(found)

    def text(self) -> str:
        return " ".join(str(self.browser.execute_script(TEXT, WORDS)).split())

    def has(self, *words: str) -> None:
        """Wait until the page has all these words."""

        def lacking() -> list[str]:
            text = self.text()
            return [word for word in words if word not in text]

        self.until(lacking)

    def in_order(self, selector: str) -> list[str]:
        """The texts of the visible elements, from the top of the page to its bottom."""
        return list(self.browser.execute_script(IN_ORDER, selector))

    def shows(self, selector: str) -> None:
        """Wait until such an element is visible."""
        self.until(lambda: "" if self.browser.execute_script(VISIBLE, selector) else selector)

    def draws(self, card: str, kind: str, expected: set[str]) -> None:
        """Wait until such elements are drawn on the cards with these tags, and with these runs where a run is named."""

        def lacking() -> list[str]:
            return sorted(expected - set(self.browser.execute_script(DRAWN, card, kind)))

        self.until(lacking)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A classification of images with two learning rates, one of them resumed, and a regression."""
    folder = tmp_path_factory.mktemp("browser")
    images: Json = {
        "data_loader": {"type": "SmallTensors", "args": {"batch_size": 16, "validation_split": 40}},
        "model": {"type": "LeNet", "args": {}},
        "loss": "cross_entropy",
        "metrics": ["accuracy"],
    }
    sizes = {"num_samples": 200, "batch_size": 20, "validation_split": 100}
    line: Json = {
        "data_loader": {"type": "RandomTensorLoader", "args": {**sizes, "input_shape": [3], "linear": [3, 1, -2]}},
        "model": {"type": "LinearRegression", "args": {"in_features": 3}},
        "loss": "mse_loss",
    }
    trainer = {"epochs": 2, "monitor": "min val_loss", "log_every_steps": 2, "verbosity": 0}

    def fit(rate: float, *overrides: str, **config: Any) -> Path:
        own = {"name": "tried", "optimizer": {"type": "SGD", "args": {"lr": rate}}}
        config |= {**own, "trainer": {**trainer, "save_dir": str(folder / "saved")}, "runtime": {"device": "cpu"}}
        (folder / "config.json").write_text(json.dumps(config))
        return train.main(["-c", str(folder / "config.json"), *overrides]).run_dir

    with temporarily(DATA_LOADERS, SmallTensors), pytest.MonkeyPatch.context() as patch:
        patch.setattr(SmallTensors, "class_names", tuple(f"class/{label}" for label in range(10)))
        resumed = fit(0.01, "trainer.epochs=1", **images)
        train.main(["-r", str(resumed), "trainer.epochs=2"])
        fit(0.05, **images)
        tested = fit(0.1, **line)
        load_script("test").main(["-r", str(tested)])
        yield folder / "saved" / "tried"


@pytest.fixture(scope="module")
def page(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A browser on a TensorBoard that has read all three runs."""
    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(saved), "--host", "127.0.0.1", "--port", "0"]
    environment = {**os.environ, "TENSORBOARD_PROXY_URL": ""}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            addresses = (re.search(r"http://127\.0\.0\.1:\d+/", line) for line in server.stderr)
            address = next(found[0] for found in addresses if found)
            with Chrome(options=options, service=ChromeService(DRIVER)) as browser:
                browser.set_script_timeout(PATIENCE)
                browser.set_page_load_timeout(PATIENCE)
                reading = WebDriverWait(browser, PATIENCE, poll_frequency=0.2)
                reading.until(lambda _: everything_is_read(address), "TensorBoard did not read the runs")
                yield Page(browser, address)
        finally:
            server.terminate()


def fetch(address: str, path: str) -> Any:
    with urlopen(f"{address}data/{path}", timeout=PATIENCE) as answer:
        return json.load(answer)


def everything_is_read(address: str) -> bool:
    """Whether the server has the runs with the last that was written to each."""
    pictures = [tag for tags in fetch(address, "plugin/images/tags").values() for tag in tags]
    return len(fetch(address, "runs")) == 3 and sum(tag.startswith("evaluation/") for tag in pictures) == 5


def test_the_address_that_the_console_prints_shows_the_monitored_value_first(page: Page, saved: Path) -> None:
    page.open(curves_address("min val_loss", ("loss", "val_loss")).partition("6006/")[2])
    page.has("loss/train", "loss/valid", "Pinned")

    def lacking() -> str:
        pinned = " ".join(page.in_order("metrics-pinned-view card-view"))
        missing = [tag for tag in ("loss/train", "loss/valid") if tag not in pinned]
        return f"{missing} among the pinned cards" if missing or "accuracy" in pinned else ""

    page.until(lacking)
    runs = [name for name in page.in_order("runs-data-table tb-data-table-content-cell") if name]
    names = sorted(path.name for path in saved.iterdir())
    assert [name for name in runs if name[:8].isdecimal()] == names, "a test is not a run of its own"
    smoothing = page.browser.execute_script(EVERYWHERE + "return found.map((field) => field.value);", "input")
    assert "0" in smoothing
    assert "0.6" not in smoothing


def test_scalars(page: Page) -> None:
    page.open("scalars&tagFilter=^(loss|gradient_norm|learning_rate|samples_per_second|memory|best)")
    page.has("loss/train", "loss/valid", "gradient_norm", "learning_rate", "samples_per_second", "memory/process_MB")
    page.open("timeseries")
    page.has("accuracy/train", "accuracy/valid", "accuracy/step")


def cards(saved: Path, tags: dict[str, list[str]]) -> set[str]:
    """A card for each run of a model with each of the model's tags."""
    runs = {path.name: json.loads((path / "config.json").read_text())["model"]["type"] for path in saved.iterdir()}
    return {f"{tag} {name}" for name, model in runs.items() for tag in tags.get(model, [])}


def test_images(page: Page, saved: Path) -> None:
    page.open("images")
    pictures = ["images/training", "evaluation/confusion_matrix", "evaluation/mistakes"]
    expected = cards(saved, {"LeNet": pictures, "LinearRegression": ["evaluation/predicted_over_true"]})
    assert len(expected) == 7
    page.draws("tf-image-loader", "img", expected)


def test_graph(page: Page) -> None:
    page.open("graphs")
    for name in ("inputs", "conv1", "max_pool2d", "fc3", "outputs"):
        page.shows(f'g.node[data-name="{name}"]')


@pytest.mark.parametrize(("name", "drawn"), [("histogram", "path.outline"), ("distribution", "path.area")])
def test_weights_and_gradients(page: Page, saved: Path, name: str, drawn: str) -> None:
    page.open(f"{name}s&tagFilter=conv1")
    expected = cards(saved, {"LeNet": ["weights/conv1.weight", "gradients/conv1.weight"]})
    page.draws(f"tf-{name}-loader", drawn, expected)


def test_text(page: Page) -> None:
    page.open("text")
    page.has("62,006 trainable parameters", "Conv2d", '"type": "SmallTensors"', '"epochs": 2')


def test_custom_scalars(page: Page) -> None:
    page.open("custom_scalars")
    page.has("loss: training", "loss: validation", "loss: training, every few steps", "gradient norm", "machine")
    titles = [" ".join(title.split()) for title in page.in_order("tf-card-heading")]
    assert [title for title in titles if title][:3] == [
        "loss: training",
        "loss: validation",
        "loss: training, every few steps",
    ]


def test_precision_recall_curves(page: Page) -> None:
    page.open("pr_curves")
    page.draws("tf-pr-curve-card", "path.line", {"precision_recall/class/0", "precision_recall/class/1"})


def best_loss(run: Path) -> float:
    return min(float(json.loads(line)["val_loss"]) for line in (run / "metrics.jsonl").read_text().splitlines())


def test_hyperparameters(page: Page, saved: Path) -> None:
    """Three runs in one table, sorted by the monitored value, and the values that the table is made of."""
    page.open("hparams")
    page.has("optimizer.lr", "model.type", "Metrics best/loss loss/valid")
    runs = {path.name: json.loads((path / "metrics.jsonl").read_text().splitlines()[-1]) for path in saved.iterdir()}
    page.browser.execute_script(SORT, "tf-hparams-query-pane", "best/loss")

    def unsorted() -> str:
        shown = [text for text in page.in_order("vaadin-grid-cell-content") if text in runs]
        losses = [best_loss(saved / name) for name in shown]
        return "" if len(shown) == 3 and losses == sorted(losses) else f"an order by best/loss (but {losses})"

    page.until(unsorted)
    heads = " ".join(page.in_order("vaadin-grid-cell-content"))
    assert "memory" not in heads
    assert "loss/step" not in heads
    asked = {"experimentName": "", "allowedStatuses": ["STATUS_SUCCESS"], "sliceSize": 10, "startIndex": 0}
    columns = [{"metric": {"tag": "best/loss", "group": ""}, "order": "ORDER_DESC"}, {"hparam": "optimizer.lr"}]
    asked["colParams"] = columns
    body = json.dumps(asked).encode()
    address = f"{page.address}data/plugin/hparams/session_groups"
    with urlopen(Request(address, body, {"Content-Type": "application/json"}), timeout=PATIENCE) as answer:
        groups = json.load(answer)["sessionGroups"]
    best = [next(m["value"] for m in group["metricValues"] if m["name"]["tag"] == "best/loss") for group in groups]
    assert len(best) == 3
    assert best == sorted(best, reverse=True)
    for group in groups:
        values = {m["name"]["tag"]: m["value"] for m in group["metricValues"]}
        assert values["best/loss"] == pytest.approx(best_loss(saved / group["name"]))
        assert values["loss/valid"] == pytest.approx(runs[group["name"]]["val_loss"])
        assert group["hparams"]["trainer.epochs"] == 2
