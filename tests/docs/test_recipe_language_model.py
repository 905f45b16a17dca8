"""docs/recipes/language_model_fine_tuning.md with a small GPT-2 that is made here: pip install transformers peft."""

import json
import math
from pathlib import Path

import pytest
import torch

from tests.docs.recipes import config, installed, run_script, trained
from tests.docs.test_recipes_tasks import check_lines
from tests.helpers import lines, state
from utils.config import load_config
from utils.registry import DATA_LOADERS

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")
# what the libraries warn about is not a mistake of the template
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

NAME = "language_model_fine_tuning"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pairs of the page, the same as a text, and a model with dropout and one without."""
    folder = tmp_path_factory.mktemp("language")
    run_script(NAME, "make_pairs.py", str(folder))
    for name in ("train", "test"):
        records = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()][:60]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        (folder / f"{name}.txt").write_text("\n".join(record["prompt"] + record["response"] for record in records))
    end = "<|endoftext|>"
    tokenizer = transformers.GPT2Tokenizer().train_new_from_iterator(
        [(folder / "train.txt").read_text()], vocab_size=300, show_progress=False
    )
    for name, dropout in (("model", 0.1), ("without_dropout", 0.0)):
        torch.manual_seed(0)
        options = {f"{part}_pdrop": dropout for part in ("resid", "embd", "attn")}
        tokenizer.save_pretrained(folder / name)
        size = {"vocab_size": len(tokenizer), "n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 2}
        ends = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.convert_tokens_to_ids(end))
        network = transformers.GPT2LMHeadModel(transformers.GPT2Config(**size, **ends, **options))
        network.save_pretrained(folder / name)
    return folder


def small(folder: Path, *overrides: str, base: str = "model", suffix: str = ".jsonl") -> list[str]:
    files = [f"data_loader.args.{part}_file={folder / part}{suffix}" for part in ("train", "test")]
    return [*files, f"variables.base={folder / base}", "runtime.device=cpu", *overrides]


def test_the_lines_are_as_its_page_says() -> None:
    check_lines(NAME)


def test_only_the_adapters_are_trained_and_saved(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with trained(NAME, tmp_path, *small(folder, "trainer.epochs=2", "data_loader.args.num_workers=1")) as recipe:
        last = lines(recipe.run)[-1]
        assert last["val_perplexity"] == pytest.approx(math.exp(last["val_loss"]))
        saved = state(recipe.run)
        assert all(".lora_" in name for name in saved["model"])
        assert len(saved["optimizer"]["state"]) == len(saved["model"]) == 4
        recipe.expected = ("gradients",)  # zero for the first factor, since the second is zero at the start
        recipe.assert_sound(capsys, step=5, tested={"loss", "perplexity"})
        capsys.readouterr()
        run_script(NAME, "write.py", str(recipe.run), "Count from 5")
        assert capsys.readouterr().out.startswith("Count from 5")


def test_all_weights_of_a_text_are_trained_as_by_a_plain_loop(folder: Path, tmp_path: Path) -> None:
    """Without adapters: the tied weights are trained once, and saved."""
    overrides = small(folder, "model.args.rank=null", base="without_dropout", suffix=".txt")
    settings = ("trainer.epochs=1", "trainer.accumulate_steps=1", "lr_scheduler=null", "trainer.clip_grad_norm=null")
    length = "data_loader.args.length=20"
    with trained(NAME, tmp_path, *overrides, *settings, length) as recipe:
        loader = DATA_LOADERS["LanguageData"](
            **load_config(recipe.config, [*overrides, length]).config.data_loader.args
        )
        network = transformers.AutoModelForCausalLM.from_pretrained(folder / "without_dropout").train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.001, fused=True)  # as in the run
        total, count = 0.0, 0
        for batch in loader.training(seed=0).one_pass():
            loss = network(**batch.data).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            tokens = int((batch.data["labels"][:, 1:] != -100).sum())
            total, count = total + float(loss.detach()) * tokens, count + tokens
        assert lines(recipe.run)[0]["loss"] == pytest.approx(total / count, rel=1e-6)
        saved = state(recipe.run)["model"]
        for name, weight in network.state_dict().items():
            assert torch.equal(saved[f"network.{name}"], weight), name


def test_micro_batches_are_one_large_batch(folder: Path, tmp_path: Path) -> None:
    found = []
    for size, steps in ((60, 1), (15, 4)):
        (tmp_path / str(size)).mkdir()
        data = (f"data_loader.args.batch_size={size}", "data_loader.args.validation_split=0")
        settings = (
            f"trainer.accumulate_steps={steps}",
            "trainer.epochs=1",
            "trainer.monitor=null",
            "lr_scheduler=null",
        )
        sgd = 'optimizer={"type": "SGD", "args": {"lr": 1.0}}'
        overrides = small(folder, *data, *settings, sgd, base="without_dropout")
        with trained(NAME, tmp_path / str(size), *overrides) as recipe:
            found.append((lines(recipe.run)[0]["loss"], state(recipe.run)["model"]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert all(torch.allclose(value, found[1][1][name], atol=1e-6) for name, value in found[0][1].items())


def test_only_responses_have_labels(folder: Path) -> None:
    with installed(NAME):
        args = {**config(NAME)["data_loader"]["args"], "tokenizer": str(folder / "model"), "batch_size": 60}
        files = {f"{part}_file": str(folder / f"{part}.jsonl") for part in ("train", "test")}
        loader = DATA_LOADERS["LanguageData"](**{**args, **files, "validation_split": 0})
        (batch,) = [batch.data for batch in loader.training(seed=0).one_pass()]
        read = loader.tokenizer.decode
        for tokens, mask, labels in zip(*batch.values(), strict=True):
            first, last = map(int, read(tokens[mask == 1]).removeprefix("Count from ").partition(":")[0].split(" to "))
            response = " ".join(map(str, range(first, last + 1)))
            assert read(labels[labels != -100]) == f" {response}{loader.tokenizer.eos_token}"
            assert (labels[mask == 0] == -100).all()
