"""``--check`` shows the parameter groups and what is frozen."""

from collections.abc import Callable
from pathlib import Path

import pytest

from extras.check import preflight
from tests.base.training.test_optimizers import GROUPS, Parts
from tests.helpers import temporarily
from utils.config import load_config
from utils.registry import MODELS


def test_the_check_shows_each_group(write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(model="Parts", optimizer=GROUPS, trainer={"freeze": [{"params": ["head.*"], "epochs": 1}]})
    with temporarily(MODELS, Parts):
        assert preflight(load_config(config)) == 0
    out = capsys.readouterr().out
    assert "group         ok    backbone: 35 parameters, lr 0.001" in out
    assert "frozen        ok    head.*: 18 parameters, for 1 epoch" in out
    assert "2 are frozen" in out
