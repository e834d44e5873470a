"""Trains pairs of losses with the same seeds, and says how far the last one is ahead of the others.

    python launch/compare.py --pair="CE |" --pair="B_cls | B_reg" --seeds=8
    python launch/compare.py --config=configs/search/faster_rcnn.py --pair="| 1 - i / u x0.5"
    python launch/compare.py --config=configs/experiments/combinations.py:faster_rcnn
    python launch/compare.py --tuned=40 --pair="squared = | 1 - i / u * (i / u)"
    python launch/compare.py --table=fcos_digits --best=40 --own_starts --seeds=4

A pair is a classification loss, a bar and a box loss, each by name or as a formula, with a factor on its usual weight
if wanted; an empty one is the detector's default.  Losses that are no formulas, such as ciou_loss, are called by the
names of cse_jax.losses.  A name may stand before it.  The best losses of a table of trained losses are pairs as well,
each beside the default of the other part.  The default pair is always the first row.  The config is that of a search,
of which the detector, the data and the length of trainings count, or one of an experiment, which also has pairs and
seeds; further pairs go before its own.  After an interruption the same command goes on; further pairs and seeds add to
those that are done.
"""

import script

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Sequence

from absl import flags
from rich.console import Console

import compilation
import config_file
import workers
from cse_jax import loss_table, workdir
from cse_jax.errors import InputError
from cse_jax.loss_table.analysis import leaders
from cse_jax.loss_table.making import pair
from cse_jax.reporting import comparison_report, confirmation_report
from cse_jax.reporting.monitor import Monitor
from cse_jax.search.comparison import Contestant, Role, compare
from cse_jax.search.confirmation import Confirmation
from cse_jax.search.ledger import Ledger
from cse_jax.search.pairs import read_pair
from cse_jax.search.task import PARTS, LossPair, Task
from cse_jax.search.trainer import Purpose
from cse_jax.search.trials import Trials
from cse_jax.search.tuning import tuned
from detectors.losses import library_loss
from detectors.models import build_detector
from detectors.training.search_trainer import task_of
from search_run import ComparisonRun, SearchRun, of_trainings

_CONFIG = config_file.define("configs/search/default.py", "Config of a search: detector, data, schedule.", SearchRun)
_PAIRS = flags.DEFINE_multi_string(
    "pair", [], "Classification loss | box loss; the last one is compared with the rest."
)
_SEEDS = flags.DEFINE_integer(
    "seeds", None, "Trainings of each pair; 8 by default, or what the config says.", lower_bound=1, upper_bound=10_000
)
_FIRST_SEED = flags.DEFINE_integer(
    "first_seed", 2_000_000, "The first seed; searches and tables use smaller ones.", lower_bound=0, upper_bound=10**9
)
_SPLIT = flags.DEFINE_enum(
    "split", "test", ["test", "select"], "Score on the test split, or on the one to choose among pairs."
)
_TUNED = flags.DEFINE_integer(
    "tuned",
    None,
    "Trainings of a random search over hyper-parameters of usual losses, whose best is a row; what the config says, or "
    "none.",
    lower_bound=0,
    upper_bound=100_000,
)
_TABLE = flags.DEFINE_string(
    "table", None, "A table of trained losses, by its name or a file, whose best ones are compared as well."
)
_BEST = flags.DEFINE_integer(
    "best", 10, "Losses of each part of --table, by mean AP on the select split.", lower_bound=1, upper_bound=100_000
)
_OWN_STARTS = flags.DEFINE_bool(
    "own_starts",
    False,
    "Each seed has a shared start of its own (config.schedule.start), so that intervals hold for other starts as well.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder; runs/compare_<config.name> by default.")


def main(argv: list[str]) -> None:
    script.start(argv)
    workers.check()
    config: SearchRun = _CONFIG.value
    folder = pathlib.Path(_WORKDIR.value or pathlib.Path("runs") / f"compare_{config.name}")
    console = Console(file=sys.stdout)
    resumes = f"Nothing finished is lost: the same command goes on in {folder}."
    with script.ending("The comparison", interrupted=resumes), compilation.kept(), workers.joined(config) as leads:
        if not leads:
            return
        kept = f"What was finished is kept in {folder}."
        with script.in_folder("The comparison", folder, console, interrupted=resumes, kept=kept):
            _compare(config, folder, console)


def _compare(config: SearchRun, folder: pathlib.Path, console: Console) -> None:
    task = task_of(build_detector(config.detector)[0])
    experiment = config if isinstance(config, ComparisonRun) else ComparisonRun()
    named = _of_table(_TABLE.value, _BEST.value, task) if _TABLE.value else []
    named += [read_pair(text, task, library_loss) for text in (*_PAIRS.value, *experiment.pairs)]
    pairs = [Contestant(name, Role.RIVAL, losses) for name, losses in named]
    rows = [Contestant("the default", Role.DEFAULT, task.default), *pairs]
    purpose: Purpose = "final" if _SPLIT.value == "test" else "proxy"
    tuning = experiment.tuned if _TUNED.value is None else _TUNED.value
    if not pairs and not tuning:
        raise InputError("there is nothing to compare with the default losses: give a --pair, a --table, or --tuned")
    if _OWN_STARTS.value and (purpose == "proxy" or not config.schedule.start):
        raise InputError("--own_starts is of the test split, and of trainings with a start: --config.schedule.start")
    selects = bool(tuning) or purpose == "proxy"
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(workers.opened(config, folder, selects=selects, own_starts=_OWN_STARTS.value))
        about, trainer = workdir.describe(config) | {"device": opened.device}, opened.trainer
        about |= {"own_starts": True} if _OWN_STARTS.value else {}
        identity = about | {"config": of_trainings(about["config"])}
        ledger = stack.enter_context(Ledger(folder / "ledger.sqlite", identity=identity))
        workdir.write_description(folder, about)
        costs: dict[str, float] = {name: trainer.horizons(name)[-1] for name in ("proxy", "final")}
        with Monitor(console, steps=costs) as monitor:
            if trainer.shared_start and (tuning or not _OWN_STARTS.value):
                monitor.activity("default losses, the start of all trainings")
                trainer.prepare()
            trials = Trials(
                trainer, ledger, monitor, workers=config.search.workers, time_limit=config.search.time_limit
            )
            if tuning:
                monitor.expect({"proxy": tuning})
                name, losses = tuned(tuning, trials=trials, seeds=config.search.proxy_seeds)
                rows.insert(1, Contestant(f"{name} (best of {tuning} trainings)", Role.TUNED, losses))
            *others, last = rows
            rows = [*others, dataclasses.replace(last, role=Role.DISCOVERED)]
            seeds = [_FIRST_SEED.value + k for k in range(_SEEDS.value or experiment.seeds)]
            monitor.expect({purpose: len(rows) * len(seeds)})
            found = Confirmation(tuple(seeds), compare(rows, seeds, trials=trials, purpose=purpose))
    about |= {
        "title": f"Pairs of losses, {config.name}",
        "split": _SPLIT.value,
        "note": _note(config.search.proxy_seeds if tuning else (), own_starts=_OWN_STARTS.value),
    }
    one_start = trainer.shared_start and not _OWN_STARTS.value
    data = comparison_report.write(folder, found, about=about, one_start=one_start)
    confirmation_report.show(console, found, split=_SPLIT.value)
    text = f"{data['conclusion']}\n{data['scope']}\nComparison: {folder / 'compare.md'}"
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _of_table(name: str, best: int, task: Task) -> list[tuple[str, LossPair]]:
    """The best losses of a table, each beside the default of the other part, with a name; the best ones last.

    Raises:
      InputError: none of them is one of the detector's.
    """
    table = loss_table.find(name)
    found = [
        (f"{part} {place}: {loss.origin}", pair(loss, task))
        for part in filter(table.of, PARTS)
        for place, loss in enumerate(leaders(table, part, best), 1)
        if loss.formula.space == task.space(part)
    ][::-1]
    if not found:
        raise InputError(f"the table {name} has no losses of {' or '.join(task.space(part).name for part in PARTS)}")
    return found


def _note(tuned_with: Sequence[int], *, own_starts: bool) -> str:
    """What is known of choices among the pairs, and of what their trainings begin with.

    Args:
      tuned_with: the seeds with which hyper-parameters were tuned, if any.
      own_starts: whether each seed had a start of its own.
    """
    known = "Whether a choice among these pairs has used these seeds, or this split, is not known here"
    seeds = ", ".join(map(str, tuned_with))
    known += f", but that the tuned pair was chosen on the select split, with the seeds {seeds}." if seeds else "."
    return f"{known} Each seed had a start of its own, which all losses share." if own_starts else known


if __name__ == "__main__":
    script.run(main)
