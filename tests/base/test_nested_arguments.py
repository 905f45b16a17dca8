"""Settings and components as arguments of a component: checked, completed in an editor, located, and built."""

import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pytest
import torch
from pydantic import PositiveInt
from torch import Tensor, nn

import train
from base.build import build_experiment, build_trainer
from tests.conftest import load_script
from tests.helpers import Fit, equal, fork, lines, registering, same, state, temporarily
from trainer.trainer import Trainer
from utils.arguments import parameters, problems
from utils.config import load_config
from utils.errors import ConfigError, UserError
from utils.nested_arguments import built, plain
from utils.paths import PROJECT
from utils.registry import LOSSES, MODELS, TRAINERS


@dataclass
class Block:
    """A hidden layer.

    width: number of its features.
    """

    width: PositiveInt
    bias: bool = True
    scales: list[float] = field(default_factory=lambda: [1.0])

    def __post_init__(self) -> None:
        if self.width == 13:
            raise ValueError("13 is unlucky")


class Head(pydantic.BaseModel):
    """The last layer."""

    classes: int = pydantic.Field(gt=0)
    block: Block | None = None

    @pydantic.field_validator("classes")
    @classmethod
    def _known(cls, classes: int) -> int:
        if classes == 7:
            raise ValueError("7 is unlucky")
        return classes

    @pydantic.model_validator(mode="after")
    def _few(self) -> "Head":
        if self.classes > 100:
            raise ValueError("too many classes")
        return self


class Backbone(nn.Module):
    """One layer."""

    def __init__(self, *, width: PositiveInt = 5) -> None:
        super().__init__()
        if width == 13:
            raise ValueError("13 is unlucky")
        self.layer = nn.Linear(6, width)

    def forward(self, inputs: Tensor) -> Any:
        return self.layer(inputs).relu()


class Nested(nn.Module):
    """Takes everything."""

    def __init__(
        self,
        *,
        backbone: nn.Module,
        head: Head,
        blocks: list[Block] | None = None,
        named: dict[str, Block] | None = None,
        numbered: dict[int, Block] | None = None,
        default: Block = Block(4),  # noqa: B008
        experts: list[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        assert isinstance(head, Head)
        assert all(isinstance(block, Block) for block in [*(blocks or []), *(named or {}).values(), default])
        self.given = (head, blocks, named, default)
        self.backbone = backbone
        self.experts = nn.ModuleList(experts or [])
        self.head = nn.Linear(5, head.classes)

    def forward(self, inputs: Tensor) -> Any:
        return self.head(self.backbone(inputs))


class SumOfLosses(nn.Module):
    """A weighted sum."""

    def __init__(self, *, losses: dict[str, nn.Module], weights: dict[str, float] | None = None) -> None:
        super().__init__()
        self.losses, self.weights = nn.ModuleDict(losses), weights or {}

    def forward(self, outputs: Tensor, targets: Tensor) -> Any:
        return sum(self.weights.get(name, 1.0) * loss(outputs, targets) for name, loss in self.losses.items())


class Distilling(Trainer):
    """Has a teacher."""

    def __init__(self, experiment: Any, settings: Any, *, teacher: nn.Module) -> None:
        super().__init__(experiment, settings)
        self.teacher = teacher.eval().requires_grad_(False)

    def train_step(self, batch: Any) -> Any:
        assert self.teacher(batch[0]).shape == (len(batch[0]), 3)
        return super().train_step(batch)


_registered = registering((MODELS, Backbone, Nested), (LOSSES, SumOfLosses), (TRAINERS, Distilling))


def model(**args: Any) -> dict[str, Any]:
    return {"type": "Nested", "args": {"backbone": "Backbone", "head": {"classes": 3}, **args}}


def test_settings_and_components_are_built(write_config: Callable[..., Path]) -> None:
    given = model(
        backbone={"type": "Backbone", "args": {"width": 5}},
        head={"classes": 3, "block": {"width": 1, "scales": [0.5]}},
        blocks=[{"width": 2, "bias": False}, {"width": 3}],
        named={"a": {"width": 7}},
        experts=["Backbone", {"type": "LeNet"}],
    )
    built: Any = build_experiment(load_config(write_config(model=given))).model
    assert isinstance(built.backbone, Backbone)
    assert [type(expert).__name__ for expert in built.experts] == ["Backbone", "LeNet"]
    head, blocks, named, default = built.given
    assert (head.classes, head.block) == (3, Block(1, scales=[0.5]))
    assert blocks == [Block(2, bias=False), Block(3)]
    assert named == {"a": Block(7)}
    assert default == Block(4)


@pytest.mark.parametrize(
    ("annotation", "value", "objects"),
    [
        (tuple[int, Block], [3, {"width": 2}], [3, ("Block", "x", 1)]),
        (tuple[Block, ...], [{"width": 1}, {"width": 2}], [("Block", "x", 0), ("Block", "x", 1)]),
        (typing.List, [{"width": 1}], [{"width": 1}]),  # noqa: UP006
        (dict[str, int] | list[Block], [{"width": 1}], [("Block", "x", 0)]),
        (dict[int, Block], {"7": {"width": 1}}, {7: ("Block", "x", "7")}),
        (str | nn.Module, "relu", "relu"),
        (str | nn.Module, {"type": "Backbone"}, ("Module", "x")),
        (Path | Block, {"width": 1}, ("Block", "x")),
        (Block | Literal["auto"], "auto", "auto"),
        (nn.Module | None, None, None),
    ],
)
def test_only_what_describes_an_object_is_built(annotation: Any, value: Any, objects: Any) -> None:
    """objects: the class and the path of each."""
    known = {"x": Parameter("x", Parameter.KEYWORD_ONLY, annotation=annotation)}
    assert not list(problems("Own", known, {"x": value}, (), takes_any=False))
    assert built(known, {"x": value}, lambda kind, _, path: (kind.__name__, *path), ()) == {"x": objects}


def test_a_default_is_kept_as_a_config_would_give_it() -> None:
    assert plain((0.9, [Block(2), Path("a")])) == [0.9, [{"width": 2, "bias": True, "scales": [1.0]}, "a"]]


def test_a_run_resumes_and_is_tested(fit: Fit) -> None:
    whole = fit("trainer.epochs=2", "trainer.save_every_steps=3", "trainer.keep_last=null", model=model()).run_dir
    half = fork(whole, 3)
    train.main(["-r", str(half)])
    equal(whole, half)
    load_script("test").main(["-r", str(half)])
    explicit = ['model.args.default={"width": 4, "bias": true}', "trainer.epochs=3"]
    assert train.main(["-r", str(half), *explicit]).epochs == 3  # what it had by default
    with pytest.raises(ConfigError, match=r"model\.args\.default\.width: cannot change"):
        train.main(["-r", str(half), 'model.args.default={"width": 5}'])


def test_a_nested_component_is_compared_with_its_defaults(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fit("trainer.epochs=1", model=model(experts=["Backbone"])).run_dir
    same = ('model.args.backbone={"type": "Backbone", "args": {"width": 5}}', "model.args.experts.0.args.width=5")
    train.main(["-r", str(run), "trainer.epochs=2", *same])
    with pytest.raises(ConfigError, match=r"experts\.0\.args\.width: cannot change .*: this run has 5, got 6"):
        train.main(["-r", str(run), "trainer.epochs=3", "model.args.experts.0.args.width=6"])
    monkeypatch.setitem(Backbone.__init__.__kwdefaults__, "width", 6)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"experts\.0\.args\.width: cannot change .*: this run has 5, got 6"):
        train.main(["-r", str(run), "trainer.epochs=3", 'model.args.experts=["Backbone"]'])


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"head": {"clases": 3}}, r'model\.args\.head\.clases: Head has no argument "clases"; did you mean "classes"'),
        ({"head": {"classes": "many"}}, r'model\.args\.head\.classes: should be an integer, got "many"'),
        ({"head": {"classes": 0}}, r"model\.args\.head\.classes: should be greater than 0, got 0"),
        ({"head": {}}, r'model\.args\.head: Head needs the argument "classes"'),
        ({"head": 3}, r"model\.args\.head: should be an? object, got 3"),
        ({"head": {"classes": 3, "block": {"widht": 3}}}, r'head\.block\.widht: Block has no argument "widht"'),
        ({"blocks": [{"width": 1}, {"width": -1}]}, r"model\.args\.blocks\.1\.width: should be greater than 0, got -1"),
        ({"numbered": {"a": {"width": 1}}}, r"model\.args\.numbered\.a: should be an integer, got"),
        ({"numbered": {"1": {"width": 0}}}, r'model\.args\.numbered\.1\.width: .*\n *\d+ \| +"width": 0'),
        ({"named": {"a": {"width": 1.5}}}, r"model\.args\.named\.a\.width: should be an integer, got 1.5"),
        ({"backbone": {"type": "Backbon"}}, r'backbone\.type: unknown model "Backbon"; did you mean "Backbone"'),
        ({"backbone": "cross_entropy"}, r'backbone: unknown model "cross_entropy"'),
        ({"backbone": {"type": "Backbone", "args": {"widht": 1}}}, r'backbone\.args\.widht: .*did you mean "width"'),
        (
            {"backbone": {"type": "Backbone", "args": None}},
            r"model\.args\.backbone\.args: should be an object, got null",
        ),
        ({"backbone": {"typ": "Backbone"}}, r'model\.args\.backbone\.typ: unknown key "typ"; did you mean "type"'),
        ({"backbone": {"type": "Backbone", "args": {"width": 0}}}, r"backbone\.args\.width: should be greater than 0"),
        ({"experts": ["Backbone", 3]}, r"model\.args\.experts\.1: should be .*, got 3"),
    ],
)
def test_a_mistake_is_located_at_the_nested_key(
    write_config: Callable[..., Path], args: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(write_config(model=model(**args)))
    assert "mistakes in the config" not in str(caught.value)
    assert " | " in str(caught.value)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"blocks": [{"width": 13}]}, r"model\.args\.blocks\.0: Block cannot be built: 13 is unlucky"),
        ({"head": {"classes": 101}}, r"model\.args\.head: Head cannot be built: too many classes\n"),
        ({"head": {"classes": 7}}, r"model\.args\.head: Head cannot be built: classes: 7 is unlucky\n"),
        ({"backbone": {"type": "Backbone", "args": {"width": 13}}}, r"model\.args\.backbone\.args: Backbone cannot be"),
    ],
)
def test_what_only_the_code_refuses_is_located_too(fit: Fit, tmp_path: Path, args: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        fit(model=model(**args))
    assert not (tmp_path / "saved").exists()


def test_a_message_for_the_user_is_shown_as_it_is(fit: Fit) -> None:
    class Needing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            raise UserError("a package is missing")

    with temporarily(MODELS, Needing), pytest.raises(UserError) as raised:
        fit(model="Needing")
    assert str(raised.value) == "a package is missing"


def test_a_validator_of_ones_own_speaks_for_itself(fit: Fit) -> None:
    def even(value: int) -> int:
        if value % 2:
            raise ValueError("can't be odd")
        return value

    class Halved(nn.Module):
        def __init__(self, *, width: Annotated[int, pydantic.AfterValidator(even)]) -> None:
            super().__init__()

    with temporarily(MODELS, Halved), pytest.raises(ConfigError, match=r"model\.args\.width: can't be odd, got 3\n"):
        fit(model={"type": "Halved", "args": {"width": 3}})


def test_a_setting_may_have_a_name_that_python_reserves(fit: Fit) -> None:
    class Penalty(pydantic.BaseModel):
        strength: float = pydantic.Field(1.0, alias="lambda")

    class Penalised(nn.Linear):
        def __init__(self, *, penalty: Penalty) -> None:
            super().__init__(6, 3)
            self.strength = penalty.strength

    with temporarily(MODELS, Penalised):
        assert fit(model={"type": "Penalised", "args": {"penalty": {"lambda": 2.0}}}).model.strength == 2.0
        with pytest.raises(ConfigError, match=r'penalty\.lambda: should be a number, got "x"'):
            fit(model={"type": "Penalised", "args": {"penalty": {"lambda": "x"}}})


def test_a_loss_is_made_of_losses(fit: Fit) -> None:
    losses = {"a": "cross_entropy", "b": {"type": "CrossEntropyLoss", "args": {"weight": [1.0, 1.0, 1.0]}}}
    summed = fit(loss={"type": "SumOfLosses", "args": {"losses": losses, "weights": {"a": 0.25, "b": 0.75}}})
    assert summed.last["loss"] == pytest.approx(fit().last["loss"])
    with pytest.raises(ConfigError, match=r'loss\.args\.losses\.a: unknown loss "LeNet"'):
        fit(loss={"type": "SumOfLosses", "args": {"losses": {"a": "LeNet"}}})


def test_a_trainer_has_a_teacher_that_is_the_same_in_training_and_testing(fit: Fit, tmp_path: Path) -> None:
    teacher = {"type": "Backbone", "args": {"width": 3}}
    settings = {"type": "Distilling", "args": {"teacher": teacher}, "epochs": 2, "save_every_steps": 3}
    plain = {"epochs": 2, "save_every_steps": 3}
    folder = {"save_dir": str(tmp_path / "saved")}
    runs = [fit("trainer.keep_last=null", trainer={**SMALL, **folder, **keys}).run_dir for keys in (settings, plain)]
    assert same(state(runs[0])["model"], state(runs[1])["model"]), "it draws nothing from the training"
    half = fork(runs[0], 3)
    train.main(["-r", str(half)])
    equal(runs[0], half)
    loaded = load_config(half / "config.json")
    teachers = [build_trainer(loaded, build_experiment(loaded)) for _ in range(2)]
    first, second = (one.teacher.state_dict() for one in teachers if isinstance(one, Distilling))
    assert same(first, second)


SMALL = {"verbosity": 1, "log_every_steps": 2, "pictures_every": 0}


class Configured(nn.Module):
    """Defaults that no config could give, as research code has them."""

    def __init__(
        self,
        *,
        act: type[nn.Module] = nn.ReLU,
        norm: nn.Module = nn.Identity(),  # noqa: B008
        scale: Tensor | None = torch.ones(2),  # noqa: B008
        table: Path = Path("table"),
        sizes: frozenset[int] = frozenset((3,)),
    ) -> None:
        super().__init__()
        assert isinstance(table, Path)
        self.layers, self.table = nn.Sequential(nn.Linear(6, 3), act(), norm), table

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def test_defaults_that_no_config_could_give_are_saved_by_name(fit: Fit) -> None:
    with temporarily(MODELS, Configured):
        run = fit(model="Configured").run_dir
        saved = state(run)["config"]["model"]["args"]
        assert saved["act"] == "torch.nn.modules.activation.ReLU"
        assert saved["table"] == "table"
        assert len(lines(train.main(["-r", run, "trainer.epochs=3"]).run_dir)) == 3


def test_a_path_arrives_as_one_in_the_projects_folder(fit: Fit) -> None:
    with temporarily(MODELS, Configured):
        result = fit(model={"type": "Configured", "args": {"table": "data/a table"}})
    assert result.model.table == PROJECT / "data" / "a table"


class Lazy(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.LazyLinear(3))


def test_a_lazy_layer_is_refused_with_its_name(fit: Fit) -> None:
    with temporarily(MODELS, Lazy), pytest.raises(ConfigError, match=r"Lazy has tensors without values: 0\.weight"):
        fit(model="Lazy")


def test_the_keys_of_an_object_are_numbers_where_the_argument_says_so() -> None:
    def component(*, costs: Mapping[int, list[float]] | None = None) -> None: ...

    args = {"costs": {"3": [0.5]}}
    assert not list(problems("component", parameters(component), args, (), takes_any=False))
    assert built(parameters(component), args, lambda kind, value, path: value, ()) == {"costs": {3: [0.5]}}
