"""The strategy ``surrogate``: a Gaussian process learns AP from behaviour, and says where an improvement is likely."""

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from cse_jax.search.strategies.strategy import Observation, Pool

SCORE_WEIGHT = 2.0  # of a stage's ranks from 0 to 1 beside places of mean square norm 1
CONSIDERED = 2000  # losses of the greatest expected improvement, of which a batch is made
_CHUNK = 4096  # losses that are judged at once
DISTRUST = 0.25  # variance that an AP of another run has besides its noise; that of all APs together is 1


class Prior(NamedTuple):
    """What another run has found.

    Attributes:
      pool: its losses, compressed together with those of the pool to choose from (see ``compress``).
      told: its trainings.
    """

    pool: Pool
    told: Sequence[Observation]


class _Data(NamedTuple):
    """Inputs and targets of a model, and the variance of each target besides the noise."""

    inputs: Float[np.ndarray, "m d"]
    targets: Float[np.ndarray, " m"]
    variance: Float[np.ndarray, " m"]


@dataclasses.dataclass(frozen=True)
class Surrogate:
    """Proposes the losses of the greatest expected improvement, each as if the ones before had come out as expected.

    A loss is known by its place among the behaviours and by its ranks in the stages; the ranks are used where they make
    the observations likelier.  Its uncertainty shrinks by what is proposed beside it, so that a batch is varied.

    Attributes:
      noise: standard deviation of the AP between trainings of a loss; NaN if it is to be estimated.
      first: losses that are trained before the model is asked, if there is no prior: every other one has the most
        promise, the others are random.
      fitted: most observations from which the length scale is learned: the best half and random ones.
      prior: what another run has found; its APs are moved to those told at the most similar losses.
    """

    noise: float = math.nan
    first: int = 10
    fitted: int = 100
    prior: Prior | None = None

    def propose(self, pool: Pool, told: Sequence[Observation], count: int, rng: np.random.Generator) -> list[int]:
        """See ``Strategy.propose``."""
        left = pool.untried(told)
        if len(told) < (self.first if self.prior is None else 0) or len(left) <= 1:
            return _start(pool, left, count, rng)
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1, "blas"):  # on matrices of this size threads only wait for each other
            return left[self._improvements(pool, told, left, count, rng)].tolist()

    def _improvements(
        self, pool: Pool, told: Sequence[Observation], left: Int[np.ndarray, " m"], count: int, rng: np.random.Generator
    ) -> list[int]:
        """Places in ``left`` of the losses to train."""
        targets, scale = self._targets(pool, told)
        noise = (self.noise / scale) ** 2
        variance = np.where(np.arange(len(targets)) < len(told), 0.0, DISTRUST)
        rows = [each.index for each in told]
        if self.prior is not None:
            rows += [len(pool.features) + each.index for each in self.prior.told]
        sample = _sample(targets, self.fitted, rng)
        fits = []
        for inputs in self._inputs(pool):
            data = _Data(inputs[rows], targets, variance)
            fits.append((*_fit(_Data(*(part[sample] for part in data)), noise), inputs))
        kernel, level, _, inputs = max(fits, key=lambda fit: fit[2])
        model = _condition(_Data(inputs[rows], targets, variance), kernel, level)
        incumbent = model.predict(inputs[rows[: len(told) or len(rows)]]).max()
        near = _most_promising(model, inputs[left], incumbent)
        means, covariance = model.predict(inputs[left[near]], return_cov=True)
        return near[_batch(means, covariance, incumbent, level, count)].tolist()

    def _inputs(self, pool: Pool) -> list[Float[np.ndarray, "n _"]]:
        """Of the losses of the pool, and then of the prior's: their places alone, and with what the stages say."""
        pools = [pool] if self.prior is None else [pool, self.prior.pool]
        places = np.concatenate([each.features for each in pools])
        places = places / (math.sqrt((places**2).sum(1).mean()) or 1.0)
        stages = [[getattr(each, name) for each in pools] for name in ("simulation", "probe", "overfit")]
        judged = [stage for stage in stages if all(np.isfinite(scores).any() for scores in stage)]
        ranks = [SCORE_WEIGHT * np.concatenate([_ranks(scores) for scores in stage])[:, None] for stage in judged]
        return [places, np.concatenate([places, *ranks], 1)] if ranks else [places]

    def _targets(self, pool: Pool, told: Sequence[Observation]) -> tuple[Float[np.ndarray, " m"], float]:
        """APs of all observations with mean 0 and deviation 1, and the AP of that deviation.

        What is far below the best is all equally bad, or the model would learn the cliff between losses that train and
        losses that don't, and nothing else.
        """
        aps = np.array([each.ap for each in told], float)
        if self.prior is not None:
            others = np.array([each.ap for each in self.prior.told])
            if told:
                places = self.prior.pool.features[[each.index for each in self.prior.told]]
                own = pool.features[[each.index for each in told]]
                nearest = ((own[:, None] - places[None]) ** 2).sum(2).argmin(1)
                others = others + np.median(aps - others[nearest])
            aps = np.concatenate([aps, others])
        spread = max(aps.max() - np.quantile(aps, 0.75), 3.0 * np.nan_to_num(self.noise))
        aps = np.maximum(aps, aps.max() - 2.0 * spread) if spread > 0.0 else aps
        scale = float(aps.std()) or 1.0
        return (aps - aps.mean()) / scale, scale


def _start(pool: Pool, left: Int[np.ndarray, " m"], count: int, rng: np.random.Generator) -> list[int]:
    """The losses of most promise and random ones in turns."""
    shuffled = rng.permutation(left)
    promising = shuffled[np.argsort(-pool.promise[shuffled], kind="stable")]
    turns = np.stack([promising, rng.permutation(left)], 1).reshape(-1)
    return list(dict.fromkeys(turns.tolist()))[:count]


def _ranks(scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """From 0 to 1; what was not judged is the worst."""
    from scipy.stats import rankdata

    return (rankdata(np.where(np.isfinite(scores), scores, -np.inf)) - 1.0) / max(1, len(scores) - 1)


def _sample(targets: Float[np.ndarray, " m"], most: int, rng: np.random.Generator) -> Int[np.ndarray, " k"]:
    order = np.argsort(-targets, kind="stable")
    return np.concatenate([order[: most // 2], rng.permutation(order[most // 2 :])[: most - most // 2]])


def _fit(data: _Data, noise: float) -> tuple[Any, float, float]:
    """A kernel, the variance of the noise, and their log likelihood, from a few observations."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    known = math.isfinite(noise)
    white = WhiteKernel(max(noise, 1e-4), "fixed") if known else WhiteKernel(0.1, (1e-3, 2.0))
    kernel = ConstantKernel(1.0, (0.05, 10.0)) * Matern(1.0, (0.1, 30.0), nu=2.5) + white
    model = _process(kernel, alpha=data.variance + 1e-8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a parameter at its bound is an answer too
        model.fit(data.inputs, data.targets)
    return model.kernel_.k1, float(model.kernel_.k2.noise_level), float(model.log_marginal_likelihood_value_)


def _condition(data: _Data, kernel: Any, level: float) -> Any:
    """The model of a kernel given all observations."""
    return _process(kernel, alpha=data.variance + level, optimizer=None).fit(data.inputs, data.targets)


def _process(kernel: Any, **settings: Any) -> Any:
    from sklearn.gaussian_process import GaussianProcessRegressor  # which takes long to import

    return GaussianProcessRegressor(kernel, **settings)


def _most_promising(model: Any, inputs: Float[np.ndarray, "m d"], best: float) -> Int[np.ndarray, " k"]:
    """The inputs of the greatest expected improvements over ``best``, at most ``CONSIDERED``, in their order."""
    if len(inputs) <= CONSIDERED:
        return np.arange(len(inputs))
    chunks = (inputs[start : start + _CHUNK] for start in range(0, len(inputs), _CHUNK))
    gains = [
        log_expected_improvement(means - best, np.maximum(deviations, 1e-6))
        for means, deviations in (model.predict(chunk, return_std=True) for chunk in chunks)
    ]
    return np.sort(np.argsort(-np.concatenate(gains), kind="stable")[:CONSIDERED])


def _batch(
    means: Float[np.ndarray, " m"], covariance: Float[np.ndarray, "m m"], best: float, noise: float, count: int
) -> list[int]:
    """The greatest expected improvements over ``best``; a choice takes from the others what it would tell of them."""
    free, chosen = np.ones(len(means), bool), []
    for _ in range(min(count, len(means))):
        gain = log_expected_improvement(means - best, np.sqrt(np.maximum(np.diag(covariance), 1e-12)))
        pick = int(np.where(free, gain, -np.inf).argmax())
        free[pick] = False
        chosen.append(pick)
        best = max(best, means[pick])
        covariance = covariance - np.outer(covariance[:, pick], covariance[pick]) / (covariance[pick, pick] + noise)
    return chosen


def log_expected_improvement(
    means: Float[np.ndarray, " m"], deviations: Float[np.ndarray, " m"]
) -> Float[np.ndarray, " m"]:
    """Logarithm of the mean of what normal variables have above 0, also where that is less than the smallest number."""
    from scipy.stats import norm

    z = means / deviations
    near: Bool[np.ndarray, " m"] = z > -5.0
    inner = np.where(near, z, 0.0)
    outer = np.where(near, -5.0, z)
    far = norm.logpdf(outer) - 2.0 * np.log(-outer) + np.log1p(-3.0 / outer**2 + 15.0 / outer**4)
    return np.log(deviations) + np.where(near, np.log(norm.pdf(inner) + inner * norm.cdf(inner)), far)
