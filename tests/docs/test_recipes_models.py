"""The recipes of docs/recipes that are about models and trainers run as they are written there."""

import sys
from pathlib import Path

import pytest
import torch
import torchvision

from tests.conftest import load_script
from tests.docs.recipes import RecipeRun, config, installed, trained
from tests.docs.test_recipes_tasks import check_lines
from tests.helpers import curves, lines, same, state

pytestmark = pytest.mark.slow

NAMES = [
    "gan", "fine_tuning", "segmentation", "recurrent", "gpt", "vae", "distillation", "reinforcement_learning", "dqn",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_lines_of_a_recipe_are_as_its_page_says(name: str) -> None:
    check_lines(name)


def test_gan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with trained("gan", tmp_path, "trainer.epochs=2", "data_loader.args.num_samples=96") as recipe:
        last = lines(recipe.run)[-1]
        assert {"loss", "generator_loss", "val_loss", "lr_generator", "lr_discriminator"} <= last.keys()
        recipe.assert_sound(capsys, step=4, tested={"loss"})


def test_fine_tuning(tmp_path: Path, capsys: pytest.CaptureFixture[str], own_cifar10: Path) -> None:
    file = tmp_path / "resnet18.pth"
    before = torchvision.models.resnet18(num_classes=7).state_dict()
    torch.save(before, file)
    data = (f"data_loader.args.data_dir={own_cifar10}", "data_loader.args.batch_size=10", f"model.weights.file={file}")
    length = ("trainer.epochs=2", "trainer.steps_per_epoch=3", "trainer.save_every_steps=5")
    with trained("fine_tuning", tmp_path, *data, *length) as recipe:
        first, last = (state(recipe.run, f"step-{step:08}.pth")["model"] for step in (3, 6))
        for name in ("layer1.0.conv1.weight", "bn1.running_mean"):
            assert torch.equal(first[name], before[name]), "frozen in the first epoch"
            assert not torch.equal(last[name], before[name])
        assert lines(recipe.run)[-1]["lr_backbone"] < lines(recipe.run)[-1]["lr"]
        # with the backbone frozen, in random weights, a few steps need not do anything
        recipe.expected = ("learning", "optimizer")
        report = recipe.assert_sound(capsys, step=5, tested={"loss", "accuracy"})
        assert "group         ok    backbone:" in report
        file.unlink()
        load_script("test").main(["-r", str(recipe.run)])  # the run has its own copy of the weights


def test_segmentation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ("data_loader.args.num_samples=80", "data_loader.args.validation_split=20")
    with trained("segmentation", tmp_path, "trainer.epochs=3", *data) as recipe:
        assert lines(recipe.run)[-1]["val_iou"] > lines(recipe.run)[0]["val_iou"]
        recipe.assert_sound(capsys, step=6, tested={"loss", "iou"})


def test_recurrent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    length = ("trainer.epochs=3", "data_loader.args.text_length=1500")  # 3 segments of 20 and one of 14 words
    with trained("recurrent", tmp_path, *length) as recipe:
        assert lines(recipe.run)[-1]["val_loss"] < lines(recipe.run)[0]["val_loss"]
        recipe.assert_sound(capsys, step=7, tested={"loss"})


def test_gpt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    length = ("trainer.epochs=2", "trainer.steps_per_epoch=20", "trainer.save_every_steps=27")
    with trained("gpt", tmp_path, "data_loader.args.num_words=300", *length) as recipe:
        first, last = lines(recipe.run)
        assert last["val_perplexity"] < first["val_perplexity"]
        assert last["val_perplexity"] == pytest.approx(torch.tensor(last["val_loss"]).exp().item(), rel=1e-4)
        assert last["lr_no_decay"] == last["lr"]
        recipe.assert_sound(capsys, step=27, tested={"loss", "perplexity"})


def test_writing_a_text_changes_nothing_of_the_training(tmp_path: Path) -> None:
    found = []
    length = ("trainer.epochs=2", "trainer.steps_per_epoch=3", "data_loader.args.num_words=300")
    for trainer in ("WritingTrainer", "Trainer"):
        (tmp_path / trainer).mkdir()
        with trained("gpt", tmp_path / trainer, *length, f"trainer.type={trainer}") as recipe:
            found.append(recipe.run)
    assert same(state(found[0])["model"], state(found[1])["model"])


def test_vae(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with trained("vae", tmp_path, "trainer.epochs=3", "trainer.save_every_steps=20") as recipe:
        for number, line in enumerate(lines(recipe.run), start=1):
            assert line["loss"] == pytest.approx(line["reconstruction"] + number / 5 * line["kl"], rel=1e-5)
            assert line["val_loss"] == pytest.approx(line["val_reconstruction"] + line["val_kl"], rel=1e-5)
        recipe.assert_sound(capsys, step=20, tested={"loss", "reconstruction", "kl"})


def test_reinforcement_learning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with installed("reinforcement_learning"):
        sys.modules["trainer.reinforce"].ReinforceTrainer.max_steps = 50
        recipe = RecipeRun(config("reinforcement_learning"), tmp_path, "trainer.epochs=2", "trainer.steps_per_epoch=15")
        first, last = lines(recipe.run)
        assert 9 < first["return"] < last["return"] <= last["val_return"] <= 50
        recipe.expected = ("",)
        recipe.assert_sound(capsys, step=15, tested={"loss", "return"})


def test_distillation(tmp_path: Path, capsys: pytest.CaptureFixture[str], own_cifar10: Path) -> None:
    with installed("distillation"):
        value = config("distillation")
        value["data_loader"]["args"] |= {"data_dir": str(own_cifar10), "batch_size": 10}
        (tmp_path / "teacher").mkdir()
        plain = {**value, "name": "teacher", "trainer": {"epochs": 1, "ema": {"decay": 0.5}}}
        teacher = RecipeRun(plain, tmp_path / "teacher").run
        value["trainer"]["args"]["teacher"] = str(teacher)
        recipe = RecipeRun(value, tmp_path, "trainer.epochs=2", "trainer.steps_per_epoch=3")
        assert lines(recipe.run)[-1]["divergence"] > 0
        assert not any("teacher" in part for part in state(recipe.run))
        assert "divergence/train" in curves(recipe.run)
        recipe.expected = ("",)
        recipe.assert_sound(capsys, step=4, tested={"loss", "accuracy"})


def test_dqn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # the buffer is full, and old transitions are overwritten, before the step that the run resumes from
    length = ("trainer.epochs=2", "trainer.save_every_steps=300")
    with trained("dqn", tmp_path, *length, "trainer.args.capacity=3000") as recipe:
        first, last = lines(recipe.run)
        assert last["return"] > 2 * first["return"]
        saved = state(recipe.run, "step-00000600.pth")
        assert int(saved["memory"]["count"]) == 600 * 8
        assert not same(saved["target"], saved["model"])
        recipe.assert_sound(capsys, step=600, tested={"loss", "return"})
