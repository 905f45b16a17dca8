"""Which operations differ between equal calls on a device, and whether deterministic kernels avoid it.

    python dev/campaigns/kernels.py                      # on the CPU, with all threads
    python dev/campaigns/kernels.py --device cuda

Each operation and its gradients are computed a dozen times from the same numbers, in each mode of
``runtime.deterministic``. Prints those that differ, warn or fail in a mode. Status 1 if one differs under "warn"
without a warning: a resumed run would then differ in silence.
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from utils.determinism import DEBUG_MODES, accept_cublas

REPEATS = 12
Case = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function or module, and its arguments. Floats of the arguments and parameters of the module get gradients."""


def r(*shape: int) -> Tensor:
    return torch.randn(shape)


def i(high: int, *shape: int) -> Tensor:
    return torch.randint(high, shape)


def interpolate(mode: str, size: int, *shape: int) -> Case:
    return lambda x: F.interpolate(x, size=(size,) * (x.dim() - 2), mode=mode), (r(*shape),)


def recurrent(kind: type[nn.LSTM | nn.GRU]) -> Case:
    module = kind(64, 64, 2, batch_first=True, bidirectional=True)
    return _Part(module, lambda x: module(x)[0]), (r(32, 100, 64),)


class _Part(nn.Module):
    """A module of which another function is called."""

    def __init__(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self.called = module, forward

    def forward(self, *args: Any) -> Any:
        return self.called(*args)


torch.manual_seed(0)
IMAGES, VOLUME, ROWS = (16, 8, 64, 64), (8, 8, 16, 16, 16), (20_000, 64)
CASES: dict[str, Case] = {
    "x[i]": (lambda x, n: x[n], (r(50, 64), i(50, 20_000))),
    "x[i, j]": (lambda x, n, m: x[n, m], (r(50, 64), i(50, 200_000), i(64, 200_000))),
    "x[mask]": (lambda x: x[x > 0].sum(), (r(500_000),)),
    "index_select": (lambda x, n: x.index_select(0, n), (r(50, 64), i(50, 20_000))),
    "gather": (lambda x, n: x.gather(0, n), (r(50, 64), i(50, *ROWS))),
    "take": (lambda x, n: x.take(n), (r(3_200), i(3_200, 500_000))),
    "scatter": (lambda x, n: torch.zeros_like(x[:50]).scatter(0, n, x), (r(*ROWS), i(50, *ROWS))),
    "scatter_add": (lambda x, n: torch.zeros_like(x[:50]).scatter_add(0, n, x), (r(*ROWS), i(50, *ROWS))),
    "index_add": (lambda x, n: torch.zeros_like(x[:50]).index_add(0, n, x), (r(*ROWS), i(50, 20_000))),
    "index_copy": (lambda x, n: torch.zeros_like(x[:50]).index_copy(0, n, x), (r(*ROWS), i(50, 20_000))),
    "index_put, accumulating": (
        lambda x, n: torch.zeros_like(x[:50]).index_put((n,), x, accumulate=True),
        (r(*ROWS), i(50, 20_000)),
    ),
    "put, accumulating": (
        lambda x, n: torch.zeros_like(x[:3_200]).put(n, x, accumulate=True),
        (r(500_000), i(3_200, 500_000)),
    ),
    "repeat_interleave": (lambda x, n: x.repeat_interleave(n, 0), (r(50, 64), i(800, 50))),
    "Embedding": (nn.Embedding(50, 64), (i(50, 20_000),)),
    "cumsum": (lambda x: x.cumsum(1), (r(64, 50_000),)),
    "median": (lambda x: x.median(1).values, (r(64, 5_001),)),
    "sort with ties": (lambda x: x.sort(1).values, (i(5, 64, 50_001).float(),)),
    "sum, mean, var, norm": (lambda x: torch.stack([x.sum(), x.mean(), x.var(), x.norm()]), (r(2_000_000),)),
    "matmul": (torch.matmul, (r(700, 900), r(900, 800))),
    "baddbmm": (torch.baddbmm, (r(16, 100, 80), r(16, 100, 900), r(16, 900, 80))),
    "Linear": (nn.Linear(900, 100), (r(512, 900),)),
    "Conv1d": (nn.Conv1d(8, 16, 3), (r(16, 8, 1_000),)),
    "Conv2d": (nn.Conv2d(8, 16, 3), (r(*IMAGES),)),
    "Conv2d, channels last": (
        nn.Conv2d(8, 16, 3).to(memory_format=torch.channels_last),
        (r(*IMAGES).to(memory_format=torch.channels_last),),
    ),
    "Conv2d, groups": (nn.Conv2d(8, 16, 3, groups=4), (r(*IMAGES),)),
    "Conv3d": (nn.Conv3d(8, 16, 3), (r(*VOLUME),)),
    "ConvTranspose2d": (nn.ConvTranspose2d(8, 16, 3, stride=2), (r(*IMAGES),)),
    "MaxPool2d": (nn.MaxPool2d(3, 1), (r(*IMAGES),)),
    "AvgPool2d": (nn.AvgPool2d(3, 1), (r(*IMAGES),)),
    "AdaptiveAvgPool2d": (nn.AdaptiveAvgPool2d(7), (r(*IMAGES),)),
    "AdaptiveMaxPool2d": (nn.AdaptiveMaxPool2d(7), (r(*IMAGES),)),
    "MaxPool3d": (nn.MaxPool3d(3, 1), (r(*VOLUME),)),
    "AvgPool3d": (nn.AvgPool3d(3, 1), (r(*VOLUME),)),
    "max_unpool2d": (
        lambda x: F.max_unpool2d(*F.max_pool2d(x, 3, 1, return_indices=True), 3, 1),  # type: ignore[arg-type]
        (r(*IMAGES),),
    ),
    "interpolate, nearest": interpolate("nearest", 100, *IMAGES),
    "interpolate, bilinear": interpolate("bilinear", 100, *IMAGES),
    "interpolate, bicubic": interpolate("bicubic", 100, *IMAGES),
    "interpolate, trilinear": interpolate("trilinear", 20, *VOLUME),
    "ReflectionPad2d": (nn.ReflectionPad2d(3), (r(*IMAGES),)),
    "ReplicationPad2d": (nn.ReplicationPad2d(3), (r(*IMAGES),)),
    "grid_sample": (
        lambda x, grid: F.grid_sample(x, grid, align_corners=False),
        (r(4, 8, 64, 64), torch.rand(4, 200, 200, 2) * 2 - 1),
    ),
    "BatchNorm2d": (nn.BatchNorm2d(8), (r(*IMAGES),)),
    "LayerNorm": (nn.LayerNorm(64), (r(64, 800, 64),)),
    "GroupNorm": (nn.GroupNorm(4, 8), (r(*IMAGES),)),
    "attention": (F.scaled_dot_product_attention, (r(8, 4, 600, 32), r(8, 4, 600, 32), r(8, 4, 600, 32))),
    "LSTM": recurrent(nn.LSTM),
    "GRU": recurrent(nn.GRU),
    "cross_entropy": (F.cross_entropy, (r(50_000, 10), i(10, 50_000))),
    "cross_entropy of pixels": (F.cross_entropy, (r(8, 10, 200, 200), i(10, 8, 200, 200))),
    "the same, summed after": (
        lambda x, n: F.cross_entropy(x, n, reduction="none").sum(),
        (r(8, 10, 200, 200), i(10, 8, 200, 200)),
    ),
    "ctc_loss": (
        lambda x, n: F.ctc_loss(x.log_softmax(2), n, torch.full((32,), 200), torch.full((32,), 30)),
        (r(200, 32, 20), i(19, 32, 30) + 1),
    ),
    "cdist": (torch.cdist, (r(500, 30), r(600, 30))),
    "PReLU": (nn.PReLU(8), (r(*IMAGES),)),
    "fold": (lambda x: F.fold(x, (64, 64), 3), (r(16, 72, 62 * 62),)),
    **{
        f"EmbeddingBag, {mode}": (nn.EmbeddingBag(50, 64, mode=mode), (i(50, 20_000), torch.arange(0, 20_000, 20)))
        for mode in ("sum", "mean", "max")
    },
}


def results(function: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Tensor]:
    """The output of a call and the gradients, of a weighted sum of it."""
    trained = [each for each in arguments if isinstance(each, Tensor) and each.is_floating_point()]
    trained += list(function.parameters()) if isinstance(function, nn.Module) else []
    for each in trained:
        each.grad = None
    outputs = function(*arguments)
    weights = torch.linspace(-1, 1, outputs.numel(), device=outputs.device).view(outputs.shape)
    (outputs * weights).sum().backward()
    return [outputs.detach(), *(each.grad for each in trained if each.grad is not None)]


def tried(case: Case, setting: Any, device: str) -> str:
    """What is seen of an operation in a mode: "" if nothing."""
    torch.set_deterministic_debug_mode(DEBUG_MODES[setting])
    function, arguments = case
    if isinstance(function, nn.Module):
        function = function.to(device)
    moved = tuple(each.to(device) for each in arguments)
    for each in moved:
        each.requires_grad_(each.is_floating_point())
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            first = results(function, moved)
            others = (results(function, moved) for _ in range(REPEATS))
            differ = sum(not all(map(torch.equal, first, other)) for other in others)
    except RuntimeError as error:
        return f"fails: {str(error).splitlines()[0][:60]}"
    finally:
        torch.set_deterministic_debug_mode(0)
    warned = any("determin" in str(each.message) for each in caught)
    return " ".join(filter(None, [f"{differ} of {REPEATS} differ" if differ else "", "warns" if warned else ""]))


def main() -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--device", default="cpu")
    options = made.parse_args()
    if options.device == "cuda":
        accept_cublas(torch.device("cuda"))
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads, {len(CASES)} operations\n")
    print("| operation | false | warn | true |\n|---|---|---|---|")
    silent = 0
    for name, case in CASES.items():
        seen = [tried(case, setting, options.device) for setting in DEBUG_MODES]
        silent += "differ" in seen[1] and "warns" not in seen[1]
        if any(seen):
            print(f"| {name} | {' | '.join(seen)} |", flush=True)
    print(f'\ndiffer under "warn" without a warning: {silent}')
    return 1 if silent else 0


if __name__ == "__main__":
    sys.exit(main())
