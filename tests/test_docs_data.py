"""The examples of docs/data.md run as printed."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

import train
from base.base_data_loader import BaseDataLoader
from base.data import Batches
from tests.helpers import ROOT, blocks, registering_page, same
from utils.registry import DATA_LOADERS

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "data.md"
CONFIGS = [json.loads(block) for block in blocks(PAGE, "json")]
_registered = registering_page(PAGE)


def loaded(batches: Batches) -> list[Any]:
    made = [micro_batch.data for micro_batch in itertools.islice(batches.one_pass(), 7)]
    batches.close()
    return made


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config["type"])
def test_an_example_gives_batches(config: dict[str, Any]) -> None:
    def make(workers: int) -> BaseDataLoader:
        torch.manual_seed(0)  # the page's masks are noise
        loader: BaseDataLoader = DATA_LOADERS[config["type"]](**{**config["args"], "num_workers": workers})
        return loader

    first = loaded(make(0).training(seed=0))
    assert len(first) >= 6
    assert same(first, loaded(make(1).training(seed=0)))
    validation = make(0).validation()
    assert bool(validation) == (config["type"] in ("Masks", "NumberStream") or "folds" in config["args"])
    if validation:
        assert loaded(validation)


def test_the_text_examples_facts() -> None:
    loader = DATA_LOADERS["TextLoader"](batch_size=8)
    assert loader.facts() == {"vocabulary_size": 20}
    widths = [batch[0].shape[1] - int((batch[0] > 0).sum(1).min()) - 1 for batch in loaded(loader.training(seed=0))]
    assert sum(widths) / len(widths) < 8, "little is padded"


TRAINED = [config for config in CONFIGS if config["type"] not in ("Masks", "TextLoader")]


@pytest.mark.parametrize("config", TRAINED, ids=lambda config: config["type"])
def test_an_example_trains(config: dict[str, Any], fit: Callable[..., train.Result]) -> None:
    metric = {"type": "Accuracy", "args": {"task": "multiclass", "num_classes": 3}}
    assert fit("trainer.steps_per_epoch=3", data_loader=config, metrics=[metric]).steps == 6
