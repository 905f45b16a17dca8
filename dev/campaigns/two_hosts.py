"""Train on two hosts, take the link of one down in the middle, and compare the end to that of a run left alone.

sudo python dev/campaigns/two_hosts.py --down 30

The hosts are two network namespaces of this machine, joined by a pair of virtual interfaces; they are removed at the
end. Needs Linux, root and ``ip``. Status 1 if the job did not start again by itself, or did not end bit for bit as the
other run.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch

from dev.campaigns.torchrun import Job, run_of, started, write_config
from tests.campaign import differences, logged

HOSTS = {f"host-{os.getpid()}-{number}": f"10.77.0.{number}" for number in (1, 2)}
FIRST = next(iter(HOSTS.values()))
LINK = "link0"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextmanager
def hosts() -> Iterator[list[str]]:
    """Two network namespaces that reach each other, and nothing else."""
    one, two = HOSTS
    try:
        for host in HOSTS:
            ip("netns", "add", host)
        ip("-n", one, "link", "add", LINK, "type", "veth", "peer", "name", LINK, "netns", two)
        for host, address in HOSTS.items():
            ip("-n", host, "address", "add", f"{address}/24", "dev", LINK)
            ip("-n", host, "link", "set", LINK, "up")
            ip("-n", host, "link", "set", "lo", "up")
        yield [one, two]
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "delete", host], stderr=subprocess.DEVNULL, check=False)


def sent(host: str) -> int:
    """Bytes that have left a host."""
    text = subprocess.run(["ip", "-n", host, "-s", "-j", "link", "show", LINK], check=True, capture_output=True).stdout
    return int(json.loads(text)[0]["stats64"]["tx"]["bytes"])


@contextmanager
def job(folder: Path, name: str, options: argparse.Namespace) -> Iterator[list[Job]]:
    """torchrun on each host, with one process."""
    arguments = write_config(folder, name, runtime={"timeout": 10.0})
    with ExitStack() as stack:
        jobs = []
        for host, address in HOSTS.items():
            launcher = ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "5"]
            launcher += ["--rdzv-id", name, "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{FIRST}:29400"]
            # a host knows by its name whether the rendezvous is its own task; these two have the same name
            launcher += ["--local-addr", address, "--rdzv-conf"]
            launcher += [f"is_host={int(address == FIRST)},read_timeout={options.read_timeout}"]
            inside = ["ip", "netns", "exec", host, "env", f"GLOO_SOCKET_IFNAME={LINK}"]
            jobs.append(stack.enter_context(started(folder, launcher, *arguments, inside=inside)))
        yield jobs


def cut(folder: Path, options: argparse.Namespace) -> bool:
    """Cut the link in the middle; whether the job went on by itself, and ended as the one that was left alone."""
    with job(folder, "cut", options) as both:
        changed = logged(folder)
        assert both[0].wait(changed), both[0].output()
        time.sleep(0.5)
        begun = time.monotonic()
        ip("-n", list(HOSTS)[options.cut - 1], "link", "set", LINK, "down")
        time.sleep(options.down)
        ip("-n", list(HOSTS)[options.cut - 1], "link", "set", LINK, "up")
        statuses = [one.end() for one in both]
        seconds = time.monotonic() - begun
        for number, one in enumerate(both, start=1):
            for line in re.findall("^(?:error: |.*Error: ).*", one.output(), flags=re.MULTILINE):
                print(f"  host {number}: {line[:300]}")
    run = run_of(folder, "cut")
    resumed = len(json.loads((run / "environment.json").read_text()).get("resumed", []))
    ended = statuses == [0, 0]
    found = differences(run_of(folder, "alone"), run) if ended else ["it did not finish"]
    print(
        f"host {options.cut} without its link for {options.down:g} s: ended {seconds:.0f} s after the cut, went on "
        f"{resumed} times, torchrun's statuses {statuses}: {found or 'equal bit for bit'}"
    )
    return not found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--down", type=float, default=30.0, help="seconds without the link (default: 30)")
    parser.add_argument(
        "--cut", type=int, choices=(1, 2), default=2, help="the host that loses it; 1 has the rendezvous"
    )
    parser.add_argument("--read-timeout", type=int, default=60, help="of the rendezvous, in seconds (default: 60)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, hosts() as (one, _):
        folder = Path(name)
        with job(folder, "alone", options) as both:
            statuses = [each.end() for each in both]
            assert statuses == [0, 0], "\n".join(each.output() for each in both)
        print(f"left alone: {sent(one):,} bytes sent by host 1", flush=True)
        return int(not cut(folder, options))


if __name__ == "__main__":
    sys.exit(main())
