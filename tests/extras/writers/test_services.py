"""MLflow's local store and Weights & Biases offline, as they are: what is in them after a kill and a resume."""

import json
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

import train
from tests.extras.writers.test_writers import killed_and_resumed
from tests.helpers import Fit, lines

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def test_mlflow_has_each_point_once(fit: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="MLflow is not installed (pip install mlflow)")
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = killed_and_resumed(fit, tmp_path, 'trainer.writers=["mlflow"]')
    train.main(["-r", str(run), "trainer.epochs=4", "optimizer.args.lr=0.2"])
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/saved/mlflow.db")
    experiment = client.get_experiment_by_name("killed")
    assert experiment is not None
    [found] = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == (run.name, "FINISHED")
    assert found.data.params["optimizer.args.lr"] == "0.1"
    assert found.data.tags["resumed with optimizer.args.lr"] == "0.2"
    records = lines(run)
    for tag, name in (("loss/train", "loss"), ("accuracy/valid", "val_accuracy"), ("epoch", "epoch")):
        points = client.get_metric_history(found.info.run_id, tag)
        assert [(point.step, point.value) for point in points] == [(row["step"], row[name]) for row in records]
    steps = [point.step for point in client.get_metric_history(found.info.run_id, "loss/step")]
    assert steps == list(range(1, 21))


def test_a_server_that_hangs_costs_a_warning(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow", reason="MLflow is not installed (pip install mlflow)")
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts, and nobody answers
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        run = fit("trainer.epochs=1", f'trainer.writers=[{{"type":"mlflow","args":{{"uri":"{uri}"}}}}]').run_dir
    errors = capsys.readouterr().err
    assert "timed out" in errors
    assert "entries; resuming the run sends them" in errors
    store = f"sqlite:///{tmp_path}/store.db"
    train.main(
        ["-r", str(run), "trainer.epochs=2", f'trainer.writers=[{{"type":"mlflow","args":{{"uri":"{store}"}}}}]']
    )
    client = MlflowClient(tracking_uri=store)
    [found] = client.search_runs([each.experiment_id for each in client.search_experiments()])
    points = client.get_metric_history(found.info.run_id, "loss/train")
    assert [(point.step, point.value) for point in points] == [(row["step"], row["loss"]) for row in lines(run)]


def rows(path: Path) -> list[tuple[int, dict[str, float]]]:
    """What an offline file logs: step and values. It is a log of LevelDB's format with a protocol buffer a record."""
    from wandb.proto import wandb_internal_pb2

    record_type: Any = wandb_internal_pb2  # whose names are not typed

    found, record, data, at = [], b"", path.read_bytes(), 7
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:  # no room for a head in this block
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            read, record = record_type.Record.FromString(record), b""
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in read.history.item}
            if items:
                found.append((int(items["_step"]), {key: items[key] for key in items if key[0] != "_"}))
    return found


def test_wandb_has_each_point_once(fit: Fit, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="Weights & Biases is not installed (pip install wandb)")
    writers = 'trainer.writers=[{"type":"wandb","args":{"mode":"offline"}}]'
    run = killed_and_resumed(fit, tmp_path, writers)
    files = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    assert len({path.name for path in files}) == 1 < len(files), "segments of one run"
    points = [(name, step, value) for path in files for step, values in rows(path) for name, value in values.items()]
    assert len({(name, step) for name, step, _ in points}) == len(points)
    records = lines(run)
    assert [(step, value) for name, step, value in points if name == "loss/valid"] == [
        (row["step"], row["val_loss"]) for row in records
    ]
    assert [step for name, step, _ in points if name == "loss/step"] == list(range(1, 16))
