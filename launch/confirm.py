"""Confirms a search: trains its result and the rivals of its final table again, with fresh seeds.

    python launch/confirm.py --workdir=runs/default --seeds=10
    python launch/confirm.py --workdir=runs/default --seeds=10 --config=configs/search/atss.py

The second command trains another detector than the search did; the data may be others, too.  After an interruption the
same command resumes; with more seeds it adds to those that are done.
"""

import script

import pathlib
import sys

from absl import flags
from rich.console import Console

import compilation
import config_file
import recorded
import workers
from confirming import confirm
from cse_jax import workdir
from cse_jax.errors import InputError
from search_run import SearchRun

_CONFIG = config_file.define(None, "Config of a search; that of the search in --workdir if none.", SearchRun)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished search.")
_SEEDS = flags.DEFINE_integer("seeds", 10, "Trainings of each row.", lower_bound=1, upper_bound=10_000)
_OWN_STARTS = flags.DEFINE_bool(
    "own_starts",
    True,
    "Each seed has a shared start of its own (config.schedule.start); --noown_starts takes less time, and its "
    "intervals hold for one start only.",
)


def main(argv: list[str]) -> None:
    script.start(argv)
    workers.check()
    if _WORKDIR.value is None:
        raise InputError("--workdir names the folder of a finished search")
    search = pathlib.Path(_WORKDIR.value)
    with script.ending("The confirmation", interrupted="Nothing finished is lost: the same command resumes."):
        config = _CONFIG.value or recorded.search_run(workdir.read_result(search)["config"])
        with compilation.kept(), workers.joined(config) as leads:
            if leads:
                confirm(config, search, _SEEDS.value, Console(file=sys.stdout), own_starts=_OWN_STARTS.value)


if __name__ == "__main__":
    script.run(main)
