"""The control of a practitioner: hyper-parameters of fixed formulas, searched with what the search itself may train."""

import math
import statistics
from collections.abc import Sequence

import numpy as np

from cse_jax.language import zoo
from cse_jax.language.expression import Expression
from cse_jax.language.parsing import parse
from cse_jax.language.spaces import BINARY_CLASS, BOX, MULTI_CLASS, Space
from cse_jax.search.task import LossPair, Task
from cse_jax.search.trials import Trials

LARGEST_FACTOR = 4.0  # on the weight of either loss; its inverse is the smallest
AGAIN = 4  # one of so many settings is trained with further seeds
_EXPONENTS = ("1 / 2", "1", "3 / 2", "2", "3")
_RATIOS = ("1 / 3", "1 / 2", "1", "2", "3")  # of the weights of foreground and background
_EPSILONS = ("1 / 2", "1", "2", "3")


def settings(space: Space) -> dict[str, Expression]:
    """Formulas that are tuned in a space, by what distinguishes them, the default loss first.

    Focal loss (Lin et al., ICCV 2017) with its alpha and gamma, quality focal loss (Li et al., NeurIPS 2020) with its
    beta, PolyLoss-1 (Leng et al., ICLR 2022) with its epsilon.  A space that is not built in has its default loss only.
    """
    texts: dict[str, str] = {}
    if space == BINARY_CLASS:
        for gamma in _EXPONENTS:
            for ratio in _RATIOS:  # (1 - p)^gamma is exp(-gamma * softplus(x)), and -log(p) is softplus(-x)
                texts[f"focal, gamma {gamma}, alpha ratio {ratio}"] = (
                    f"{ratio} * y * exp(-({gamma} * softplus(x))) * softplus(-x) "
                    f"+ ny * exp(-({gamma} * softplus(-x))) * softplus(x)"
                )
        entropy, distance = "(q * softplus(-x) + (1 - q) * softplus(x))", "abs(q - sigmoid(x))"
        for beta in (1, 2, 3):
            texts[f"quality focal, beta {beta}"] = " * ".join([distance] * beta + [entropy])
        for epsilon in _EPSILONS:
            texts[f"PolyLoss-1, epsilon {epsilon}"] = (
                f"y * (softplus(-x) + {epsilon} * sigmoid(-x)) + ny * (softplus(x) + {epsilon} * sigmoid(x))"
            )
    elif space == MULTI_CLASS:
        for gamma in (1, 2, 3):
            factors = " * ".join(["y"] + ["(1 - softmax(x))"] * gamma)
            texts[f"focal, gamma {gamma}"] = f"-dot({factors}, log(softmax(x)))"
        for epsilon in _EPSILONS:
            texts[f"PolyLoss-1, epsilon {epsilon}"] = f"-dot(y, log(softmax(x))) - {epsilon} * dot(y, softmax(x))"
    return {zoo.default_name(space): zoo.default(space)} | {name: parse(text, space) for name, text in texts.items()}


def tuned(count: int, *, trials: Trials, seeds: Sequence[int]) -> tuple[str, LossPair]:
    """The best setting of a random search (Bergstra and Bengio, JMLR 13, 2012) over formulas and both weights.

    All settings are trained on the proxy task with the first seed, the best quarter of them with the others too.  The
    default losses as they are are the first setting.

    Args:
      count: trainings at most; one or two more where it is less than a handful.
      trials: trains them.
      seeds: of these trainings.

    Returns:
      What the setting is, for people, and the losses.
    """
    task = trials.trainer.task
    drawn = _drawn(task, max(1, int(count / (1.0 + (len(seeds) - 1) / AGAIN))), seeds[0])
    names = list(drawn)
    what = "control: hyper-parameters"
    first = [o.ap for o in trials.run([(drawn[n], seeds[0]) for n in names], purpose="proxy", what=what)]
    ranked = sorted(zip(first, names, strict=True), key=lambda row: row[0] if math.isfinite(row[0]) else -1.0)
    best = ranked[::-1][: max(1, len(names) // AGAIN)]
    jobs = [(drawn[name], seed) for _, name in best for seed in seeds[1:]]
    further = [o.ap for o in trials.run(jobs, purpose="proxy", what=f"{what}, further seeds")]
    each = len(seeds) - 1
    means = [statistics.fmean([ap, *further[k * each : (k + 1) * each]]) for k, (ap, _) in enumerate(best)]
    winner = max(range(len(best)), key=lambda k: means[k] if math.isfinite(means[k]) else -1.0)
    return best[winner][1], drawn[best[winner][1]]


def _drawn(task: Task, count: int, seed: int) -> dict[str, LossPair]:
    """Random settings by what they are, the default losses first."""
    rng = np.random.default_rng(seed)
    formulas = settings(task.cls_space)
    box_name, names = zoo.default_name(BOX), list(formulas)
    found = {f"{names[0]} + {box_name}": task.default}
    while len(found) < count:
        name = names[rng.integers(len(names))]
        factors = [float(f"{LARGEST_FACTOR ** rng.uniform(-1.0, 1.0):.3g}") for _ in range(2)]
        losses = task.replaced("box", task.default.box, factors[1], task.replaced("cls", formulas[name], factors[0]))
        found[f"{name} x{factors[0]:g} + {box_name} x{factors[1]:g}"] = losses
    return found
