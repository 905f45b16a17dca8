"""Every private name of another library that the code relies on: where, and what happens once it is gone.

A private name may change in any release. To use one more, add it here; to stop using one, remove its line.
"""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torchmetrics
from torch.distributed.checkpoint import filesystem, metadata
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD
from torch.optim import optimizer as optimizers
from torch.optim.lr_scheduler import StepLR

from base.training.loss import is_compiled
from tests.helpers import ROOT
from utils import fast_step

FOLDERS = ("utils", "logger", "base", "data_loader", "model", "trainer", "extras", "dev")
OURS = set(FOLDERS) - {"data_loader", "model", "trainer"}  # what a project does in its own folders is its own matter
SCRIPTS = [
    ROOT / name
    for name in ("train.py", "test.py", "sweep.py", "predict.py", "recipe.py", "new_project.py")
    if (ROOT / name).exists()
]
SOURCES = sorted([*SCRIPTS, *(path for folder in OURS for path in ROOT.glob(f"{folder}/**/*.py"))])

# documented in spite of the underscore: named tuples, a module's extra state, the end of a process without Python's
# own, the module of a device that is not torch's own; and methods of other projects' trainers, which a message names
DOCUMENTED = {
    "_train_epoch",
    "_valid_epoch",
    "_asdict",
    "_exit",
    "_extra_state",
    "_fields",
    "_make",
    "_register_device_module",
    "_replace",
}


class Private(NamedTuple):
    name: str
    file: str
    exists: Callable[[], bool]
    """Whether the installed version of the library has it."""
    when_gone: str


def sgd() -> SGD:
    return SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


def cross_entropy() -> torch.Tensor:
    return torch.nn.functional.cross_entropy(torch.zeros(1, 2, requires_grad=True), torch.tensor([0]))


def compiled() -> torch.nn.Module:
    module: Any = torch.compile(torch.nn.Linear(1, 1))
    assert isinstance(module, torch.nn.Module)
    return module


def compiled_in_place() -> torch.nn.Module:
    module = torch.nn.Linear(1, 1)
    module.compile()
    return module


def reducer() -> type:
    from torch._C._distributed_c10d import Reducer

    return Reducer


PRIVATE = [
    *(
        Private(
            "_version",
            file,
            lambda: isinstance(torch.zeros(1)._version, int),
            "reading a batch fails: changes in place can no longer be noticed",
        )
        for file in ("base/data/device_cache.py", "base/data/sources.py")
    ),
    *(
        Private(
            name,
            "base/training/state.py",
            lambda name=name: name in vars(torch.nn.Module()),  # type: ignore[misc]
            "no run starts",
        )
        for name in ("_buffers", "_modules", "_parameters")
    ),
    Private(
        "_non_persistent_buffers_set",
        "utils/distributed/parallel.py",
        lambda: torch.nn.Module()._non_persistent_buffers_set == set(),
        "no run with several processes starts",
    ),
    *(
        Private(
            name,
            "utils/distributed/fsdp.py",
            lambda name=name: not getattr(torch.zeros(0), name),  # type: ignore[misc]
            "no run with FSDP starts",
        )
        for name in ("_backward_hooks", "_post_accumulate_grad_hooks")
    ),
    Private(
        "_orig_mod",
        "base/initial_weights.py",
        lambda: "_orig_mod.weight" in compiled().state_dict(),
        "weights that were saved from a compiled model do not fit; model.weights.rename takes the prefix away",
    ),
    Private(
        "_update_count",
        "base/training/library_metric.py",
        lambda: torchmetrics.MeanMetric()._update_count == 0,
        "a resumed metric of torchmetrics warns that nothing was measured",
    ),
    Private(
        "_output_shapes",
        "extras/tensorboard/model_summary.py",
        lambda: True,  # TensorFlow's name in a file; tests/extras/tensorboard/test_browser.py sees whether it is read
        "TensorBoard's graph shows no shapes",
    ),
    Private(
        "_engine_run_backward",
        "utils/fast_step.py",
        lambda: fast_step._engine() is not None,
        "a step takes 20 us longer: loss.backward() is called as it is",
    ),
    Private(
        "_dynamo",
        "base/training/broadcast.py",
        lambda: type(compiled()).__module__.startswith("torch._dynamo."),
        "a compiled loss is averaged wrongly in the first step",
    ),
    *(
        Private(
            name,
            "base/training/loss.py",
            lambda: is_compiled(compiled_in_place()),
            "a run with a compiled loss resumes exactly only up to rounding",
        )
        for name in ("_compiled_call_impl", "_torchdynamo_orig_callable")
    ),
    Private(
        "_rebuild_buckets",
        "utils/distributed/parallel.py",
        lambda: hasattr(reducer(), "_rebuild_buckets"),
        "no run of several processes under DDP starts",
    ),
    Private(
        "_active_ddp_module",
        "utils/distributed/parallel.py",
        lambda: hasattr(DistributedDataParallel, "_active_ddp_module"),
        "nothing, but a compiled model sends its gradients only at the end of the backward pass",
    ),
    *(
        Private(
            name,
            "utils/checkpoint/shards.py",
            exists,
            "sharded checkpoints cannot be used: an error at the first one",
        )
        for name, exists in {
            "_StorageInfo": lambda: hasattr(filesystem, "_StorageInfo"),
            "_MEM_FORMAT_ENCODING": lambda: hasattr(metadata, "_MEM_FORMAT_ENCODING"),
        }.items()
    ),
    Private(
        "_found_inf_per_device",
        "utils/runtime.py",
        lambda: hasattr(torch.amp.GradScaler, "_found_inf_per_device"),
        "fp16 with a schedule by step fails, at the first step",
    ),
    Private(
        "_foreach_mul_",
        "base/training/metrics.py",
        lambda: hasattr(torch, "_foreach_mul_"),
        "gradients over accumulated steps are not scaled: an error, at the first step",
    ),
    Private(
        "_foreach_copy_",
        "base/training/averaging.py",
        lambda: hasattr(torch, "_foreach_copy_"),
        "averages of integer buffers are not updated: an error, at the first step",
    ),
    Private(
        "_saved_total_weight",
        "base/training/loss.py",
        lambda: hasattr(cross_entropy().grad_fn, "_saved_total_weight"),
        "the targets of a cross entropy are counted once more",
    ),
    *(
        Private(
            name,
            "base/training/loss.py",
            lambda: callable(torch._C._autograd._top_saved_tensors_default_hooks),
            "the targets of a cross entropy are not counted: an error, at the first step",
        )
        for name in ("_C", "_autograd", "_top_saved_tensors_default_hooks")
    ),
    Private(
        "_dynamo",
        "extras/early/late_compiler.py",
        lambda: hasattr(torch._dynamo.utils, "is_compile_supported"),
        "torchvision is imported with torch's compiler, which takes a second",
    ),
    *(
        Private(
            "_opt_called",
            file,
            lambda: "_opt_called" in vars(scheduled()),
            "a scheduler warns in its first step that the optimizer has not stepped",
        )
        for file in ("base/training/schedule.py", "utils/fast_step.py")
    ),
    Private(
        "_wrapped_by_lr_sched",
        "utils/fast_step.py",
        lambda: hasattr(vars(scheduled())["step"], "_wrapped_by_lr_sched"),
        "with a scheduler, a step takes torch's slower way: right, 20 to 60 us slower, and 1 s to start",
    ),
    *(
        Private(name, "utils/fast_step.py", exists, "each step takes torch's slower way: right, and 20 to 60 us slower")
        for name, exists in {
            "_is_profiler_enabled": lambda: hasattr(torch.autograd.profiler, "_is_profiler_enabled"),
            "_optimizer_step_pre_hooks": lambda: "_optimizer_step_pre_hooks" in vars(sgd()),
            "_optimizer_step_post_hooks": lambda: "_optimizer_step_post_hooks" in vars(sgd()),
            "_global_optimizer_pre_hooks": lambda: hasattr(optimizers, "_global_optimizer_pre_hooks"),
            "_global_optimizer_post_hooks": lambda: hasattr(optimizers, "_global_optimizer_post_hooks"),
        }.items()
    ),
]


def scheduled() -> torch.optim.Optimizer:
    """An optimizer with a scheduler, after a step."""
    optimizer = sgd()
    StepLR(optimizer, 1)  # puts its own step around the optimizer's
    optimizer.param_groups[0]["params"][0].grad = torch.zeros(1)
    optimizer.step()
    return optimizer


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name.isidentifier() and name != "_"


def defined(trees: dict[Path, ast.Module]) -> tuple[set[str], set[str]]:
    """The project's own private names: attributes and methods of its classes, and what its modules define."""
    attributes: set[str] = set()
    globals_: set[str] = set()
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                attributes |= names_of(node.body)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
                attributes.add(node.attr)
        globals_ |= names_of(tree.body)
    return attributes, globals_


def names_of(body: list[ast.stmt]) -> set[str]:
    """What the statements of a class or a module define."""
    names: set[str] = set()
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return names


def is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def foreign(trees: dict[Path, ast.Module]) -> Iterator[tuple[str, str, int]]:
    """(name, file, line) of each private name that the project uses and does not define itself."""
    attributes, globals_ = defined(trees)
    own = attributes | globals_
    for path, tree in trees.items():
        modules = imported_from(tree, FOLDERS)
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Attribute):
                of_ours = isinstance(node.value, ast.Name) and node.value.id in modules
                known = own if of_ours or is_self(node.value) else attributes
                names = [] if node.attr in known else [node.attr]
            elif isinstance(node, ast.Import):
                names = [part for alias in node.names for part in alias.name.split(".")]
            elif isinstance(node, ast.ImportFrom):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                names = [name for name in names if name not in own]
            elif isinstance(node, ast.Constant) and isinstance(
                node.value, str
            ):  # getattr, monkeypatching, "in vars(x)"
                names = [part for part in node.value.split(".") if part not in own]
            for name in names:
                if is_private(name) and name not in DOCUMENTED:
                    yield name, path.relative_to(ROOT).as_posix(), getattr(node, "lineno", 0)


def imported_from(tree: ast.Module, packages: tuple[str, ...]) -> set[str]:
    """The names under which a file has modules or objects of these packages."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in packages:
            found |= {alias.asname or alias.name for alias in node.names}
    return found


@pytest.mark.slow
def test_every_private_name_that_is_used_is_listed_and_no_other() -> None:
    trees = {path: ast.parse(path.read_text()) for path in SOURCES}
    listed = {(entry.name, entry.file) for entry in PRIVATE if (ROOT / entry.file).exists()}  # a project may lack some
    used = {(name, file): line for name, file, line in foreign(trees)}
    missing = [f"{file}:{line} uses {name}" for (name, file), line in used.items() if (name, file) not in listed]
    assert not missing, f"use something public, or add to PRIVATE in {__name__}: {missing}"
    unused = [f"{file} does not use {name}" for name, file in sorted(listed - used.keys())]
    assert not unused, f"remove from PRIVATE in {__name__}: {unused}"


@pytest.mark.parametrize("entry", PRIVATE, ids=lambda entry: entry.name)
def test_a_private_name_is_there(entry: Private) -> None:
    try:
        found = entry.exists()
    except (AttributeError, ImportError):
        found = False
    assert found, f"{entry.name} is gone from the installed version, so in {entry.file}: {entry.when_gone}"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("import torch._C", "_C"),
        ("from torch.nn.modules.loss import _Loss", "_Loss"),
        ("import torch\nx = torch.zeros(1)._version", "_version"),
        ("getattr(x, '_reductions', None)", "_reductions"),
        ("class A:\n    def f(self):\n        return self._inherited", "_inherited"),
        ("def _version(x):\n    return x._version", "_version"),
    ],
)
def test_a_private_name_is_seen(text: str, name: str) -> None:
    assert [found for found, _, _ in foreign({ROOT / "a.py": ast.parse(text)})] == [name]


@pytest.mark.parametrize(
    "text",
    [
        "class A:\n    def f(self):\n        self._x = 1\n        return other._x",
        "def _f(): ...\nx = '_f'",
        "from collections import namedtuple\nx._replace(a=1)",
        "import os\nos._exit(0)",
        "from utils import files\nfiles._f()\ndef _f(): ...",
    ],
)
def test_the_projects_own_and_documented_names_are_not(text: str) -> None:
    assert list(foreign({ROOT / "a.py": ast.parse(text)})) == []
