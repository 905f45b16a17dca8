"""A new run that starts from weights in a file: what is taken, what is left, and every file that must be refused."""

import json
import os
import pickle
import signal
import struct
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor, nn

import train
from base.initial_weights import load_weights
from tests import forked
from tests.conftest import load_script
from tests.helpers import PATIENCE, ROOT, Fit, equal, fork, registering, same, state, temporarily
from tests.utils.checkpoint.test_untrusted import Payload, sign
from utils import checkpoint
from utils.checkpoint.weights_file import read_weights
from utils.errors import CheckpointError, ConfigError, UserError
from utils.registry import MODELS


class Net(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(6, 5, bias=False)
        self.output = nn.Linear(5, 3, bias=False)

    def forward(self, inputs: Tensor) -> Any:
        return self.output(self.hidden(inputs).relu())


_net = registering((MODELS, Net))


def weights(**more: Any) -> dict[str, Tensor]:
    """Those of Net, in numbers that it would not start with."""
    shapes = {"hidden.weight": (5, 6), "output.weight": (3, 5)}
    return {name: torch.full(shape, index + 0.5) for index, (name, shape) in enumerate(shapes.items())} | more


def model(file: Any, **more: Any) -> dict[str, Any]:
    return {"type": "Net", "weights": {"file": str(file), **more} if more else str(file)}


def saved(folder: Path, value: Any, name: str = "weights.pth") -> Path:
    torch.save(value, folder / name)
    return folder / name


def initial(run: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = checkpoint.read(run / "initial.pth")["model"]
    return found


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> Path:
    """The format: the length of a JSON header, the header, the bytes of the tensors."""
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = tensor.numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "bare": lambda found: found,
    "state_dict": lambda found: {"epoch": 3, "state_dict": found},
    "model": lambda found: {"model": found, "best": 0.5},
    "model_state_dict": lambda found: {"model_state_dict": found},
    "ddp": lambda found: {f"module.{name}": tensor for name, tensor in found.items()},
    "beside others": lambda found: {"ema": {"hidden.weight": torch.zeros(5, 6)}, "model": found},
    "only one": lambda found: {"params": found, "optimizer": {"state": {}, "param_groups": []}},
    "ddp, compiled": lambda found: {f"_orig_mod.module.{name}": tensor for name, tensor in found.items()},
    "compiled ddp": lambda found: {
        "state_dict": {f"module._orig_mod.{name}": tensor for name, tensor in found.items()}
    },
    "half": lambda found: {name: tensor.half() for name, tensor in found.items()},
}


@pytest.mark.parametrize("how", WRAPPED)
def test_a_state_dict_is_taken_in_the_usual_wrappers(fit: Fit, tmp_path: Path, how: str) -> None:
    run = fit("trainer.epochs=1", "--lr=1e-30", model=model(saved(tmp_path, WRAPPED[how](weights())))).run_dir
    assert same(dict(state(run)["model"]), weights())


def test_the_old_format_of_torch_is_taken(fit: Fit, tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert same(initial(fit(model=model(tmp_path / "old.pt")).run_dir), weights())


@pytest.mark.slow
def test_runs_and_checkpoints_are_taken_by_both_ways(fit: Fit, tmp_path: Path) -> None:
    first = fit("trainer.monitor=min loss", model="Net").run_dir
    copied = tmp_path / "copied.pth"
    copied.write_bytes((first / "checkpoints" / "last.pth").read_bytes())
    for source in (first, first / "checkpoints" / "last.pth", copied):
        by_config, by_option = fit(model=model(source)).run_dir, fit("--init-from", str(source), model="Net").run_dir
        assert same(initial(by_config), state(first, "best.pth")["model"])
        assert same(initial(by_option), initial(by_config))
    assert json.loads((by_option / "config.json").read_text())["model"]["weights"]["file"] == str(copied)


def test_a_path_of_the_command_line_is_where_the_user_is_and_one_of_a_config_in_the_project(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, weights())
    monkeypatch.chdir(tmp_path)
    assert same(initial(fit("--init-from", "weights.pth", model="Net").run_dir), weights())
    with pytest.raises(CheckpointError, match=rf"file: {ROOT}/weights\.pth cannot be read: No such file"):
        fit(model=model("weights.pth"))
    monkeypatch.setattr("utils.paths.PROJECT", tmp_path)
    assert same(initial(fit(model=model("weights.pth")).run_dir), weights())


def test_what_is_skipped_keeps_its_initial_values_and_is_named(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = weights(**{"output.weight": torch.ones(9, 5), "head.bias": torch.ones(2)})
    run = fit("--lr=1e-30", model=model(saved(tmp_path, other), skip=["output.*", "head.*"])).run_dir
    plain = fit("--lr=1e-30", model="Net").run_dir
    assert same(initial(run), {"hidden.weight": other["hidden.weight"]})
    assert same(state(run)["model"]["hidden.weight"], other["hidden.weight"])
    assert same(state(run)["model"]["output.weight"], state(plain)["model"]["output.weight"])
    assert "weights.pth; not loaded: output.weight" in capsys.readouterr().out


def test_prefixes_are_renamed(fit: Fit, tmp_path: Path) -> None:
    found = {"module.body.hidden.weight": weights()["hidden.weight"], "module.head.weight": weights()["output.weight"]}
    file = saved(tmp_path, found)
    assert same(initial(fit(model=model(file, rename={"body.": "", "head.": "output."})).run_dir), weights())
    raw = {"module.body.": "", "module.head.": "output."}
    assert same(initial(fit(model=model(file, rename=raw)).run_dir), weights())


def test_all_that_does_not_fit_is_listed(fit: Fit, tmp_path: Path) -> None:
    found = {"hidden.weight": torch.ones(7, 6), "head.a.weight": torch.ones(2), "head.a.bias": torch.ones(2), "n": 5}
    with pytest.raises(UserError) as caught:
        fit(model=model(saved(tmp_path, found)))
    message = str(caught.value)
    for part in (
        ": model.weights.file: the weights in",
        'Missing key(s) in state_dict: "output.weight"',
        'Unexpected key(s) in state_dict: "head.a.weight", "head.a.bias", "n"',
        "size mismatch for hidden.weight: copying a param with shape torch.Size([7, 6]) from checkpoint",
    ):
        assert part in message
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"skip": ["ouput.*"]}, r'skip\.0: no parameter or buffer matches "ouput\.\*"; did you mean "output\.\*"'),
        ({"skip": ["zzz"]}, r'no parameter or buffer matches "zzz"; expected one of: hidden\.\*, output\.\*'),
        ({"skip": ["*"]}, r"model\.weights\.skip: this leaves no weights of .* to load"),
        ({"rename": {"hiden.": "x."}}, r'rename\.hiden\.: no name in the file starts with "hiden\."; .*"hidden\."'),
        ({"rename": {"hidden.": "output."}}, r'two weights would be called "output.weight"'),
    ],
)
def test_a_pattern_or_prefix_without_effect_is_an_error_at_its_place(
    fit: Fit, tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        fit(model=model(saved(tmp_path, weights()), **settings))
    assert not (tmp_path / "saved").exists()


class Tied(nn.Module):
    """The weights of its output are those of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 3, bias=False)
        self.head = nn.Linear(6, 3, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, inputs: Tensor) -> Any:
        return self.head(inputs)


def test_one_name_of_a_tied_weight_is_enough(fit: Fit, tmp_path: Path) -> None:
    with temporarily(MODELS, Tied):
        file = saved(tmp_path, {"embed.weight": torch.ones(3, 6)})
        run = fit("--lr=1e-30", model={"type": "Tied", "weights": str(file)}).run_dir
    assert same(state(run)["model"]["head.weight"], torch.ones(3, 6))


# ------------------------------------------------------------------ kept in the run


@pytest.mark.slow
@pytest.mark.parametrize("skip", [[], ["output.*"]])
def test_neither_a_resume_nor_a_test_needs_the_file_again(fit: Fit, tmp_path: Path, skip: list[str]) -> None:
    file = saved(tmp_path, weights())
    whole = fit("trainer.epochs=2", "trainer.save_every_steps=3", model=model(file, skip=skip)).run_dir
    unstarted = fork(whole, 0)
    file.unlink()
    train.main(["-r", str(unstarted)])
    equal(whole, unstarted)
    assert load_script("test").main(["-r", str(unstarted)]) == load_script("test").main(["-r", str(whole)])


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_needs_no_file(fit: Fit, tmp_path: Path) -> None:
    args = {"in_features": 6, "hidden_features": 5, "out_features": 3, "bias": False}
    found = {"fc1.weight": weights()["hidden.weight"], "head.weight": torch.ones(2)}
    file = saved(tmp_path, found)
    taken = {"file": str(file), "skip": ["head.*", "fc2.*"]}
    whole = fit(model={"type": "TwoLayerNet", "args": args, "weights": taken}).run_dir
    variables = {**os.environ, "DO_AT": "1:0:kill", "RUNS": str(tmp_path)}
    words = ("-m", "tests.killable", "-c", tmp_path / "config.json", "name=killed")
    killed = forked.run(*words, cwd=ROOT, env=variables, timeout=PATIENCE)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (run,) = (tmp_path / "saved" / "killed").iterdir()
    assert not list((run / "checkpoints").iterdir())
    file.unlink()
    train.main(["-r", str(run)])
    assert same(state(run)["model"], state(whole)["model"])
    load_script("test").main(["-r", str(run)])


def test_a_run_whose_initial_weights_are_gone_does_not_start_from_others(fit: Fit, tmp_path: Path) -> None:
    run = fork(fit("trainer.epochs=1", model=model(saved(tmp_path, weights()))).run_dir, 0)
    (run / "initial.pth").unlink()
    with pytest.raises(CheckpointError, match=r"initial\.pth, .* is missing"):
        train.main(["-r", str(run)])


def test_other_weights_are_refused_on_resume_and_the_way_out_works(fit: Fit, tmp_path: Path) -> None:
    file = saved(tmp_path, weights())
    run = fit("trainer.epochs=1", model=model(file, skip=["output.*"])).run_dir
    with pytest.raises(ConfigError, match=r"model\.weights\.file: cannot change when a run is resumed") as caught:
        train.main(["-r", str(run), "model.weights.file=x.pth"])
    assert "'model.weights.skip=[]' 'model.weights.rename={}'" in str(caught.value)
    options = ["model.weights.skip=[]", "model.weights.rename={}", "name=next"]
    following = train.main(["-c", str(run / "config.json"), "--init-from", str(run), *options]).run_dir
    assert same(initial(following), state(run)["model"])


def test_a_checkpoint_from_before_the_key_resumes(fit: Fit) -> None:
    run = fit("trainer.epochs=1").run_dir
    path = checkpoint.step_files(run / "checkpoints")[0]
    before = checkpoint.read(path)
    assert "weights" in before["config"]["model"]
    del before["config"]["model"]["weights"]
    (path.parent / "last.pth").unlink()
    checkpoint.write(path, before)
    assert train.main(["-r", str(run), "trainer.epochs=2"]).epochs == 2


# ------------------------------------------------------------------ files that are refused


def broken(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def flipped(data: bytes) -> bytes:
    at = data.index(torch.full((4,), 0.5).numpy().tobytes())
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data[: len(data) // 2], "is damaged, or"),
        (lambda data: data[:1], "is damaged, or"),
        (lambda data: b"", "is damaged, or"),
        (flipped, "is damaged: weights/data/0 has a wrong checksum"),
        (lambda data: b"hello, world", "is damaged, or"),
        (lambda data: b"\x00" * 5000, "is damaged, or"),
    ],
)
def test_a_damaged_file_is_refused(fit: Fit, tmp_path: Path, change: Callable[[bytes], bytes], says: str) -> None:
    file = saved(tmp_path, weights())
    broken(file, change)
    with pytest.raises(CheckpointError, match=rf"model\.weights\.file: .*weights\.pth {says}"):
        fit(model=model(file))
    assert not (tmp_path / "saved").exists()


def test_nothing_in_a_file_is_run(fit: Fit, tmp_path: Path) -> None:
    trace = tmp_path / "it ran"
    for value in (Payload(trace), {"state_dict": weights(), "hook": Payload(trace)}):
        with pytest.raises(CheckpointError, match="nothing in it was run"):
            fit(model=model(saved(tmp_path, value)))
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(CheckpointError, match="nothing in it was run"):
        fit(model=model(tmp_path / "bare.pth"))
    sign(file := saved(tmp_path, {"model": weights(), "format": 1, "hook": Payload(trace)}))
    with pytest.raises(CheckpointError, match="no code in it was run"):
        fit(model=model(file))
    assert not trace.exists()


@pytest.mark.parametrize(
    "value", [[1, 2], {}, {3: 4}, {3: torch.zeros(4)}, 5, {"netG": weights(), "netD": weights(), "epoch": 3}]
)
def test_a_file_without_one_state_dict_is_refused(fit: Fit, tmp_path: Path, value: Any) -> None:
    with pytest.raises(CheckpointError, match="does not contain one state dict"):
        fit(model=model(saved(tmp_path, value)))


def test_what_a_file_holds_beside_weights_is_named(fit: Fit, tmp_path: Path) -> None:
    value = {"state_dict": weights(), "args": Namespace(lr=0.1)}
    says = r"values \(argparse\.Namespace\); nothing .*torch\.save\(torch\.load\(FILE, weights_only=False\)"
    with pytest.raises(CheckpointError, match=says):
        fit(model=model(saved(tmp_path, value)))


def test_a_damaged_checkpoint_of_ours_is_not_taken_for_a_foreign_file(fit: Fit, tmp_path: Path) -> None:
    copied = tmp_path / "copied.pth"
    copied.write_bytes((fit().run_dir / "checkpoints" / "last.pth").read_bytes())
    data = copied.read_bytes()
    for damaged in (data[:-1] + b"x", data + b"\0\0", data[:-80] + b"x" + data[-79:]):
        copied.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"copied\.pth"):
            fit(model=model(copied))


def test_a_named_pipe_does_not_hang(fit: Fit, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="not a regular file"):
        fit(model=model(tmp_path / "weights.pth"))


# ------------------------------------------------------------------ safetensors


def test_safetensors_without_the_library(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    file = write_safetensors(tmp_path / "weights.safetensors", weights())
    with pytest.raises(CheckpointError, match="pip install safetensors"):
        fit(model=model(file))


def test_safetensors_are_read_by_their_library(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_safetensors(tmp_path / "weights.safetensors", weights())
    try:
        import safetensors.torch  # noqa: F401
    except ModuleNotFoundError:  # what it would return
        library: Any = ModuleType("safetensors.torch")
        library.load_file = lambda path: weights()
        monkeypatch.setitem(sys.modules, "safetensors", ModuleType("safetensors"))
        monkeypatch.setitem(sys.modules, "safetensors.torch", library)
    assert same(initial(fit(model=model(file)).run_dir), weights())


def test_the_content_tells_the_format(fit: Fit, tmp_path: Path) -> None:
    """A name may have any suffix, as the .bin of Hugging Face."""
    pytest.importorskip("safetensors")
    for name in ("weights.bin", "weights.pth"):
        assert same(initial(fit(model=model(write_safetensors(tmp_path / name, weights()))).run_dir), weights())
    assert same(initial(fit(model=model(saved(tmp_path, weights(), "x.safetensors"))).run_dir), weights())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda content: content[:-9], "is incomplete or damaged: .* again"),
        (lambda content: content[:12] + b"\xff" + content[13:], "is incomplete or damaged: .* again"),
        (lambda content: b"\x89PNG" * 9, "is damaged, or"),
        (lambda content: struct.pack("<Q", 2) + b"{}", "does not contain one state dict"),
    ],
    ids=["incomplete", "damaged", "another format", "empty"],
)
def test_safetensors_that_cannot_be_used_are_named(
    fit: Fit, tmp_path: Path, change: Callable[[bytes], bytes], says: str
) -> None:
    pytest.importorskip("safetensors")
    file = write_safetensors(tmp_path / "weights.safetensors", weights())
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(CheckpointError, match=rf"weights\.safetensors {says}"):
        fit(model=model(file))


def test_shards_are_read_by_their_index(fit: Fit, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": []}')
    shards = {name: f"model-0000{number}-of-00002.safetensors" for number, name in enumerate(weights(), start=1)}
    for name, shard in shards.items():
        write_safetensors(folder / shard, {name: weights()[name]})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    assert same(initial(fit(model=model(index)).run_dir), weights())
    (folder / shards["hidden.weight"]).unlink()
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002\.safetensors cannot be read: No such file"):
        fit(model=model(index))
    for text in (
        "{}",
        "[]",
        '{"weight_map": []}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "../a.pth"}}',
        '{"weight_map": {"a": ""}}',
    ):
        index.write_text(text)
        with pytest.raises(CheckpointError, match="is not an index of shards"):
            fit(model=model(index))
    index.unlink()
    index.symlink_to(os.devnull)
    with pytest.raises(CheckpointError, match="is not a regular file"):  # as of a named pipe, which would block
        read_weights(index)


# ------------------------------------------------------------------ the config


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (5, r'model\.weights: should be an object, such as \{"file"'),
        ({"skip": []}, r'model\.weights: the key "file" is missing'),
        ({"file": "x", "skips": []}, r'unknown key "skips"; did you mean "skip"'),
        ({"file": "x", "skip": "fc.*"}, r'model\.weights\.skip: should be a list, got "fc'),
        ({"file": "x", "rename": {"a": 1}}, r"model\.weights\.rename\.a: should be a string, got 1"),
        ("", r"model\.weights: should have at least 1 character"),
    ],
)
def test_mistakes_in_the_key_are_located(fit: Fit, given: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        fit(model={"type": "Net", "weights": given})


def test_an_override_sets_a_part_of_the_short_form(fit: Fit, tmp_path: Path) -> None:
    run = fit('model.weights.skip=["output.*"]', model=model(saved(tmp_path, weights()))).run_dir
    assert set(initial(run)) == {"hidden.weight"}


def test_check_says_what_is_taken(write_config: Callable[..., Path], tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("extras.check")
    path = write_config(model=model(saved(tmp_path, weights()), skip=["output.*"]))
    train.main(["--check", "-c", str(path)])
    assert "weights       ok    1 tensor of " in (out := capsys.readouterr().out)
    assert "weights.pth; not loaded: output.weight" in out


@pytest.mark.parametrize(
    ("given", "valid"),
    [("a.pth", True), ({"file": "a.pth", "skip": ["fc.*"]}, True), (None, True), ({"skip": []}, False), (5, False)],
)
def test_the_editor_knows_the_key(given: Any, valid: bool) -> None:
    pytest.importorskip("extras.schema")
    schema = json.loads((ROOT / "config.schema.json").read_text())
    config = json.loads((ROOT / "config.json").read_text())
    config["model"]["weights"] = given
    assert jsonschema.Draft7Validator(schema).is_valid(config) == valid


def test_all_weights_of_a_run_that_do_not_match_are_named() -> None:
    model, other = (nn.Sequential(*(nn.Linear(2, size) for _ in range(4))) for size in (3, 4))
    with pytest.raises(CheckpointError, match=r"do not match this model:\nsize mismatch(.|\n)*3\.weight(.|\n)*3\.bias"):
        load_weights(model, other.state_dict(), Path("a.pth"))


def test_an_error_that_a_model_raises_as_it_loads_is_named() -> None:
    class Strict(nn.Linear):
        def load_state_dict(self, *_: Any, **__: Any) -> Any:
            raise KeyError("scale")

    with pytest.raises(CheckpointError, match=r"a\.pth do not match this model:\nKeyError: 'scale'"):
        load_weights(Strict(1, 1), {}, Path("a.pth"))
