"""``make schema``: rewrites config.schema.json, docs/config.md and the README's table of the most common keys."""

import argparse
import re

from extras.schema.config_table import MOST_USED, config_table
from extras.schema.json_schema import config_schema, dumps
from utils.paths import PROJECT, display_path
from utils.registry import import_components

# the table in the README; a README without these marks is left unchanged
TABLE = re.compile(r"(<!-- keys: begin -->)\n.*?(<!-- keys: end -->)", re.DOTALL)

HEAD = """\
# The keys of a config

Written by `make schema` from utils/schema.py; do not edit. A component is `{"type": NAME, "args": {...}}` or its name
alone; `python train.py --list` shows them all. A config that `extends` another contains only what differs: objects are
merged, lists are replaced, null removes an inherited key, and a component of another type replaces the inherited one.

**On resume** (`train.py -r RUN KEY=VALUE`, or a changed config.json of the run) each key has one rule. A change that
takes effect does so from the next step on, and the console says so: `resumed with optimizer.args.lr 0.01 -> 0.5`. A
changed schedule, or learning rate under a schedule, applies as if it had been set from the first step; a changed
monitor compares the finished epochs again. A change that takes effect between epochs is refused in the middle of one.
A refused change ends with status 2 and leaves the folder unchanged; `--init-from` starts a new run from the weights.
A data loader's arguments are refused except for `num_workers`, `eval_batch_size`, and those annotated accordingly,
such as `data_dir` (`Changeable[str]`); `batch_size` and `shuffle` take effect between epochs. An optimizer's argument
is refused if it is used only when the state is created (`lr` of Rprop, `initial_accumulator_value` of Adagrad,
`history_size` of LBFGS) or needs state that the run does not have (`amsgrad`).

"""


def texts() -> dict[str, str]:
    """The files' contents, by path relative to the project's folder."""
    import_components()
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    return {
        "config.schema.json": dumps(config_schema()),
        "docs/config.md": f"{HEAD}{config_table()}\n",
        "README.md": TABLE.sub(lambda marks: f"{marks[1]}\n{config_table(*MOST_USED)}\n{marks[2]}", readme),
    }


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m extras.schema", description=__doc__).parse_args()
    for name, text in texts().items():
        path = PROJECT / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"{display_path(path)}: {len(text):,} characters")
