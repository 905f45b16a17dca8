"""The examples of docs/training.md run as printed, and resume exactly."""

import json
from pathlib import Path
from typing import Any

import pytest

import train
from tests.conftest import load_script
from tests.helpers import ROOT, blocks, equal, registering_page, resumed

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "training.md"
CONFIGS = [json.loads(block) for block in blocks(PAGE, "json")]
_registered = registering_page(PAGE)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config["name"])
def test_an_example_trains_and_resumes_exactly(config: dict[str, Any], tmp_path: Path) -> None:
    often = ["trainer.save_every_steps=3", "trainer.keep_last=null", "trainer.pictures_every=0"]
    if "extends" in config:
        config = {**config, "extends": str(ROOT / config["extends"].removeprefix("../"))}
        often.append("trainer.steps_per_epoch=10")  # of 100: Muon takes long
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    run = train.main(["-c", str(path), f"trainer.save_dir={tmp_path / 'saved'}", *often]).run_dir
    equal(run, resumed(run, tmp_path))


def test_the_rates_have_the_names_that_the_page_says(tmp_path: Path) -> None:
    config = {**CONFIGS[0], "extends": str(ROOT / "configs/two_layer_net.json")}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    last = train.main(["-c", str(path), f"trainer.save_dir={tmp_path}", "trainer.epochs=1"]).last
    assert {"lr", "lr_output"} <= last.keys()


def test_an_evaluation_of_ones_own_is_that_of_test_too(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(next(config for config in CONFIGS if config["name"] == "neighbours")))
    run = train.main(["-c", str(path), f"trainer.save_dir={tmp_path}"]).run_dir
    assert 0 <= load_script("test").main(["-r", str(run)])["neighbour"] <= 1


def test_a_run_stops_at_a_value_and_stays_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = next(config for config in CONFIGS if config["name"] == "until")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**config, "extends": str(ROOT / "configs/two_layer_net.json")}))
    run = train.main(["-c", str(path), f"trainer.save_dir={tmp_path}"])
    assert run.last["loss"] <= 1.0 < run.history[-2]["loss"]
    capsys.readouterr()
    assert train.main(["-r", str(run.run_dir)]).epochs == run.epochs < 50
    assert f"stopped by UntilTrainer.finished() after {run.epochs} epochs" in capsys.readouterr().out
