"""The recipes of docs/recipes that are about data, losses and optimizers run as they are written there."""

import sys
from pathlib import Path

import pytest
import torch

from tests.docs.recipes import RecipeRun, config, installed, notes, user_lines
from tests.helpers import lines

# the lines that each page's head states, by file
LINES = {
    "detection": {"trainer": 13, "data_loader": 28, "model": 66},
}


@pytest.mark.parametrize("name", LINES)
def test_the_lines_of_a_recipe_are_as_its_head_says(name: str) -> None:
    counted = dict[str, int]()
    for path, count in user_lines(name).items():
        folder = path.partition("/")[0]
        counted[folder] = counted.get(folder, 0) + count
    assert counted == LINES[name]


def test_detection(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with installed("detection"):
        value = config("detection")
        value["data_loader"]["args"] |= {"num_samples": 40, "num_test_samples": 12, "validation_split": 8}
        recipe = RecipeRun(value, tmp_path, "trainer.epochs=2", "data_loader.args.batch_size=12")
        first, last = lines(recipe.run)
        assert {"class_loss", "val_box_loss", "map50", "val_map50"} <= last.keys()
        assert last["val_loss"] < first["val_loss"]
        assert last["val_loss"] == pytest.approx(last["val_class_loss"] + last["val_box_loss"])
        recipe.assert_resumes_exactly(step=4)
        assert notes(recipe.check(capsys)) == []
        assert recipe.test().keys() == {"loss", "class_loss", "box_loss", "map50"}


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
