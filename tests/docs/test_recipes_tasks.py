"""The recipes of docs/recipes that are about data, losses and optimizers run as they are written there."""

import math
import re
import statistics
import sys
from pathlib import Path

import pytest
import torch

from recipe import PAGES
from tests.docs.recipes import RecipeRun, config, installed, run_script, trained, user_lines
from tests.helpers import lines, same, state
from utils.registry import DATA_LOADERS

pytestmark = pytest.mark.slow

NAMES = ["detection", "multi_task", "text_classification", "stream", "k_fold", "mixup_sam_ema"]
PARTS = {"trainer": "trainer", "data_loader": "data", "model": "model"}


@pytest.mark.parametrize("name", NAMES)
def test_the_lines_of_a_recipe_are_as_its_page_says(name: str) -> None:
    check_lines(name)


def check_lines(name: str) -> None:
    counted = dict.fromkeys([*PARTS.values(), "script"], 0)
    for path, count in user_lines(name).items():
        counted[PARTS.get(path.partition("/")[0], "script")] += count
    there = {part: count for part, count in counted.items() if count}
    head = (PAGES / f"{name}.md").read_text().partition("```")[0].partition("Your lines: ")[2]
    assert list(map(int, re.findall(r"(\d+) for", head))) == list(there.values()), there
    row = (PAGES / "README.md").read_text().partition(f"({name}.md)")[2].partition("\n")[0]
    assert f"| {' + '.join(map(str, there.values()))} |" in row, there


def test_detection(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"num_samples": 40, "num_test_samples": 12, "validation_split": 8, "batch_size": 12}
    data = [f"data_loader.args.{name}={value}" for name, value in sizes.items()]
    with trained("detection", tmp_path, "trainer.epochs=2", *data) as recipe:
        first, last = lines(recipe.run)
        assert {"class_loss", "val_box_loss", "map50", "val_map50"} <= last.keys()
        assert last["val_loss"] < first["val_loss"]
        assert last["val_loss"] == pytest.approx(last["val_class_loss"] + last["val_box_loss"])
        recipe.assert_sound(capsys, step=4, tested={"loss", "class_loss", "box_loss", "map50"})


def test_average_precision() -> None:
    with installed("detection"):
        metric = sys.modules["model.average_precision"].AveragePrecision50(num_classes=2)
        boxes = torch.tensor([[0.0, 0, 8, 8], [20, 20, 30, 30], [0, 0, 8, 9]])
        target = {"boxes": boxes[:2], "labels": torch.tensor([1, 1])}
        found = {"boxes": boxes[[0, 2, 1]], "labels": torch.tensor([1, 1, 1]), "scores": torch.tensor([0.9, 0.8, 0.7])}
        metric.update([found], [target])
        assert float(metric.compute()) == pytest.approx((1 + 2 / 3) / 2), "the second finds what was found before"
        nothing = {"boxes": boxes[:0], "labels": torch.tensor([], dtype=torch.int64), "scores": torch.tensor([])}
        metric.update([nothing], [{"boxes": boxes[2:], "labels": torch.tensor([0])}])
        assert float(metric.compute()) == pytest.approx((1 + 2 / 3) / 4)


def test_multi_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with trained("multi_task", tmp_path, "trainer.epochs=2", "data_loader.args.num_samples=100") as recipe:
        last = lines(recipe.run)[-1]
        for phase in ("", "val_"):
            weights = {task: last[f"{phase}{task}_weight"] for task in ("quadrant", "distance")}
            assert weights["distance"] < 1, "the larger loss weighs less"
        parts = sum(weights[task] * last[f"val_{task}_loss"] - math.log(weights[task]) / 2 for task in weights)
        assert last["val_loss"] == pytest.approx(parts, rel=1e-5)
        assert last["lr_loss"] == 0.02
        assert state(recipe.run)["loss"]["log_variances.distance"] > 0
        logged = {f"{task}_{value}" for task in ("quadrant", "distance") for value in ("loss", "weight")}
        recipe.assert_sound(capsys, step=6, tested={"loss", "quadrant_accuracy", "distance_error", *logged})


def test_text_classification(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ("data_loader.args.num_samples=200", "data_loader.args.batch_size=16")
    with trained("text_classification", tmp_path, "trainer.epochs=2", *data) as recipe:
        recipe.assert_sound(capsys, step=14, tested={"loss", "accuracy", "recall"})
        assert "| bad   " in (recipe.run / "test" / "report.md").read_text()
        loader = DATA_LOADERS["ReviewLoader"](num_samples=200, batch_size=16, balanced=True)
        batches = [batch.data for batch in loader.training(seed=0).one_pass()]
        assert abs(sum(int(batch["label"].sum()) for batch in batches) - 100) < 30
        padded = sum(int((batch["tokens"] == 0).sum()) for batch in batches)
        assert padded < 0.2 * sum(batch["tokens"].numel() for batch in batches)
        assert loader.facts()["class_counts"] == [15, 185]


def test_stream(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_script("stream", "make_sensor_data.py", str(tmp_path / "sensors"))
    data = (f"data_loader.args.data_dir={tmp_path / 'sensors'}", "data_loader.args.num_validation_samples=50")
    with trained("stream", tmp_path, "trainer.epochs=2", "trainer.steps_per_epoch=30", *data) as recipe:
        saved = state(recipe.run, "step-00000045.pth")["data"]["stream"]
        assert saved["position"] == 45 * 32
        assert saved["passes"] == 1
        printed = recipe.assert_sound(capsys, step=45, tested={"loss", "mean_absolute_error"})
        assert "again" not in printed, "it reads on from its state"


def test_k_fold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = config("k_fold")
    value["trainer"]["epochs"] = 2
    value["data_loader"]["args"] |= {"folds": 3, "fold": 1}
    recipe = RecipeRun(value, tmp_path)
    recipe.assert_sound(capsys, step=10, tested={"loss", "mean_absolute_error"})
    arguments = ["-c", str(recipe.config), *recipe.overrides, f"trainer.save_dir={tmp_path / 'folds'}"]
    run_script("k_fold", "k_fold.py", "3", *arguments)
    losses = [lines(run)[-1]["val_loss"] for run in (tmp_path / "folds" / "k_fold").iterdir()]
    assert len(set(losses)) == 3
    assert lines(recipe.run)[-1]["val_loss"] in losses
    printed = capsys.readouterr().out
    assert f"val_loss: {statistics.mean(losses):.4f} +- {statistics.stdev(losses):.4f}" in printed


def test_mixup_sam_and_averaged_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with trained("mixup_sam_ema", tmp_path, "trainer.epochs=4") as recipe:
        saved = state(recipe.run)
        assert not same(saved["model"], saved["averaged_weights"])
        assert all("momentum_buffer" in values for values in saved["optimizer"]["state"].values())
        recipe.assert_sound(capsys, step=21, tested={"loss", "accuracy"})


def test_sam_steps_by_the_gradient_at_the_worst_point() -> None:
    with installed("mixup_sam_ema"):
        weight = torch.nn.Parameter(torch.tensor([3.0, -4.0]))
        optimizer = sys.modules["trainer.sam"].SAM([weight], lr=0.1, rho=0.5)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = (weight**4).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()

        start = weight.detach().clone()
        gradient = 4 * start**3
        worst = start + 0.5 * gradient / gradient.norm()
        assert float(optimizer.step(closure)) == 81 + 256
        assert torch.allclose(weight, start - 0.1 * 4 * worst**3)
