"""How long does it take to the official tutorial's accuracy? ``python dev/bench/accuracy.py --data-dir DIR``.

Both sides run in turns as whole processes: the recipe of torch's tutorial "Training a classifier" as its readers type
it (images read and transformed one by one in two worker processes, batches of 4, two epochs), and
``train.py -c configs/cifar10_lenet.json`` with everything on, and with the overrides given as KEY=VALUE. Accuracy is
that of CIFAR10's test images.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent.parent


def tutorial(data_dir: str) -> None:
    """The official recipe. Prints the accuracy on the test images as JSON."""
    import torch
    from hand_written import LeNet  # type: ignore[import-not-found]  # beside this file
    from torch.nn import functional as F  # noqa: N812
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import CIFAR10

    look = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))])
    train = DataLoader(CIFAR10(data_dir, True, look), batch_size=4, shuffle=True, num_workers=2)
    test = DataLoader(CIFAR10(data_dir, False, look), batch_size=4, num_workers=2)
    model = LeNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    for epoch in range(2):
        running = 0.0
        for number, (images, labels) in enumerate(train, start=1):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            running += loss.item()
            if number % 2000 == 0:
                print(f"epoch {epoch + 1}  batch {number}  loss {running / 2000:.3f}")
                running = 0.0
    correct = count = 0
    with torch.no_grad():
        for images, labels in test:
            correct += int((model(images).argmax(1) == labels).sum())
            count += len(labels)
    print(json.dumps({"accuracy": correct / count}))


def timed(command: Sequence[str]) -> tuple[float, str]:
    """Seconds of a whole process, and what it printed. Raises CalledProcessError if it fails."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - start, done.stdout


def ours(settings: Sequence[str], data_dir: str) -> tuple[float, float]:
    """Seconds of train.py with these arguments, and the accuracy that test.py finds."""
    with tempfile.TemporaryDirectory() as folder:
        data = (f"data_loader.args.data_dir={data_dir}", "data_loader.args.download=false")
        trained, _ = timed([sys.executable, "train.py", *settings, f"trainer.save_dir={folder}", *data])
        run = next(Path(folder).glob("*/*"))
        timed([sys.executable, "test.py", "-r", str(run)])
        return trained, json.loads((run / "test" / "metrics.json").read_text())["accuracy"]


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data-dir", required=True, help='folder that holds "cifar-10-batches-py"')
    made.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides of the config")
    made.add_argument("--repeats", type=int, default=3, help="runs of each side, ours with other seeds (default: 3)")
    made.add_argument("--threads", type=int, help="threads of each run (default: what torch takes)")
    made.add_argument("--launcher", default=sys.executable, help="what runs the recipe (default: this Python)")
    made.add_argument("--tutorial", action="store_true", help="run the tutorial's recipe here and print its accuracy")
    options = made.parse_args()
    data_dir = str(Path(options.data_dir).resolve())
    if options.tutorial:
        tutorial(data_dir)
        return
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # the runs inherit it
    recipe = [*shlex.split(options.launcher), "dev/bench/accuracy.py", "--data-dir", data_dir, "--tutorial"]
    seconds = []
    print("| seed | train.py | accuracy | tutorial | accuracy |\n|---|---|---|---|---|")
    for seed in range(options.repeats):
        settings = ("-c", "configs/cifar10_lenet.json", f"seed={seed}", *options.overrides)
        trained, accuracy = ours(settings, data_dir)
        theirs, printed = timed(recipe)
        reached = json.loads(printed.splitlines()[-1])["accuracy"]
        seconds.append((trained, theirs))
        print(f"| {seed} | {trained:.1f} s | {accuracy:.1%} | {theirs:.0f} s | {reached:.1%} |", flush=True)
    print(f"\nratio of the medians: {median(a for a, _ in seconds) / median(b for _, b in seconds):.3f}")


if __name__ == "__main__":
    main()
