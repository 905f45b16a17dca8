"""Metrics of torchmetrics that add up the same are updated once for all, and have the values that each has alone."""

import inspect
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torchmetrics import Metric, classification, regression
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassPrecision, MulticlassRecall
from torchmetrics.classification.stat_scores import MulticlassStatScores

import train
from base.metric import StepResult
from base.training.library_metric import LibraryMetric, share_updates
from base.training.metrics import Metrics
from tests.helpers import Fit, curves, fork, lines
from utils.tree import same

CLASSES = 4
ARGUMENTS: list[dict[str, Any]] = [
    *({}, {"threshold": 0.3}, {"beta": 2.0}, {"min_recall": 0.5}),
    *({"num_classes": CLASSES, **more} for more in ({}, {"average": "micro"}, {"top_k": 2}, {"ignore_index": 1})),
    *({"num_classes": CLASSES, **more} for more in ({"thresholds": 11}, {"beta": 2.0}, {"normalize": "true"})),
    *({"num_labels": CLASSES, **more} for more in ({}, {"average": "micro"}, {"threshold": 0.3})),
]


def every_metric() -> Iterator[tuple[type[Metric], dict[str, Any]]]:
    for module in (classification, regression):
        for kind in vars(module).values():
            if not (inspect.isclass(kind) and issubclass(kind, Metric)):
                continue
            for args in ARGUMENTS:
                with suppress(Exception):  # it does not take them
                    kind(**args)
                    yield kind, args


def batches(kind: type[Metric]) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shape = (16, CLASSES) if kind.__name__.startswith("Multi") else (16,)
    for _ in range(3):
        outputs = torch.rand(shape, generator=generator)
        if kind.__name__.startswith("Multiclass"):
            yield outputs.softmax(1), torch.randint(CLASSES, (16,), generator=generator)
        elif kind.__name__.startswith(("Multi", "Binary")):
            yield outputs, torch.randint(2, shape, generator=generator)
        else:
            yield outputs + 0.1, torch.rand(shape, generator=generator) + 0.1


@pytest.mark.filterwarnings("ignore")
def test_every_metric_that_follows_another_has_the_state_that_it_has_alone() -> None:
    made = [(kind, args, LibraryMetric(f"{kind.__name__} {args}", kind(**args))) for kind, args in every_metric()]
    share_updates([metric for _, _, metric in made])
    following = [(kind, args, metric) for kind, args, metric in made if metric.leader]
    assert len(following) > 50
    for kind, args, metric in following:
        alone = LibraryMetric("alone", kind(**args))
        assert metric.leader is not None
        for each in (metric.leader, metric):
            each.reset()
        for outputs, targets in batches(kind):
            metric.leader.update(outputs, targets)
            alone.update(outputs, targets)
        taken = metric.state_dict()
        assert same(taken, alone.state_dict()), metric.name
        assert same(metric.leader.state_dict(), taken), "reading a follower leaves the leader as it is"


class Watched:
    """Counts the updates of metrics of a multiclass problem."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.updates = 0
        update = MulticlassStatScores.update

        def watched(metric: Any, *args: Tensor) -> None:
            self.updates += 1
            update(metric, *args)

        monkeypatch.setattr(MulticlassStatScores, "update", watched)


def make(*kinds: Any, **args: Any) -> Metrics:
    return Metrics({}, {kind.__name__: LibraryMetric(kind.__name__, kind(5, **args)) for kind in kinds})


def feed(made: Metrics, count: int = 3) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        outputs, targets = torch.randn(12, 5, generator=generator), torch.randint(5, (12,), generator=generator)
        made.update(StepResult(F.cross_entropy(outputs, targets), outputs, targets), samples=12, share=1.0)


KINDS = (MulticlassPrecision, MulticlassRecall, MulticlassF1Score, MulticlassAccuracy)


def test_one_update_for_all_of_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    watched, expected = Watched(monkeypatch), dict[str, float]()
    for kind in KINDS:
        alone = make(kind, average="macro")
        feed(alone)
        expected |= alone.compute()
    assert watched.updates == 3 * len(KINDS)
    together = make(*KINDS, average="macro")
    for _ in range(2):  # also after a reset
        watched.updates = 0
        feed(together)
        assert together.compute() == expected
        assert watched.updates == 3
        together.reset()


def test_other_arguments_are_not_shared() -> None:
    made = Metrics({}, {str(k): LibraryMetric(str(k), MulticlassAccuracy(5, top_k=k)) for k in (1, 2)})
    assert not any(metric.follows for metric in made.library.values())
    entries = [LibraryMetric("day", MulticlassAccuracy(5), entry=name) for name in ("day", "night")]
    share_updates(entries)
    assert not any(metric.follows for metric in entries)


@pytest.mark.parametrize("names", [["Precision", "Recall"], ["Recall", "Precision"]])
def test_a_saved_state_is_that_of_each_metric(names: list[str]) -> None:
    kinds = {"Precision": MulticlassPrecision, "Recall": MulticlassRecall}
    whole, half, rest = (make(*(kinds[name] for name in names), average="macro") for _ in range(3))
    feed(whole, 4)
    feed(half, 4)
    state = half.state_dict()
    rest.load_state_dict(state)
    assert rest.compute() == whole.compute()
    # an earlier run without the first: its state is not that of the metric that it would follow
    state["processes"][0].pop(f"Multiclass{names[0]}")
    later = make(*(kinds[name] for name in names), average="macro")
    later.load_state_dict(state)
    other = f"Multiclass{names[1]}"
    assert later.library[other].compute() == whole.compute()[other]
    later.reset()
    feed(later, 4)
    assert later.compute() == whole.compute()


def test_a_resumed_run_has_the_same_values(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    args = {"task": "multiclass", "num_classes": 3, "average": "macro"}
    chosen = [{"type": kind, "args": args} for kind in ("F1Score", "Precision", "Recall")]
    watched = Watched(monkeypatch)
    often = ("trainer.epochs=3", "trainer.log_every_steps=1", "trainer.save_every_steps=1", "trainer.keep_last=null")
    whole = fit(*often, "trainer.tensorboard=true", metrics=chosen).run_dir
    assert watched.updates
    half = fork(whole, 7)
    train.main(["-r", half])
    assert lines(half) == lines(whole)
    assert curves(half) == curves(whole)
