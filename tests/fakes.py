"""A trainer that costs nothing."""

import random

from cse_jax.search.trials import Training


class FakeTrainer:
    """Scores losses by a hash; gives up, raises, or interrupts the search at chosen trainings."""

    def __init__(self, *, interrupt_at: int = -1, diverge_every: int = 0, raise_every: int = 0) -> None:
        self.count = self.calls = self.forgotten = 0
        self.interrupt_at, self.diverge_every, self.raise_every = interrupt_at, diverge_every, raise_every

    def horizons(self, purpose):
        return {"probe": (2, 4), "verify": (5,), "proxy": (10, 20), "final": (30,)}[purpose]

    def at_once(self, purpose):
        return 8 if purpose == "probe" else 1

    def forget(self, losses, *, purpose, seed):
        self.forgotten += 1

    def gradient_norms(self, losses):
        return [(1.0 + len(pair.cls), 2.0 * len(pair.box)) for pair in losses]

    def train(self, losses, *, purpose, seed, horizon, stop):
        self.calls += 1
        return [self.train_one(pair, purpose, seed, horizon) for pair in losses]

    def train_one(self, losses, purpose, seed, horizon):
        self.count += 1
        if self.count == self.interrupt_at:
            raise KeyboardInterrupt
        weighted = f"{losses.cls_weight} x {losses.cls}; {losses.box_weight} x {losses.box}"
        chance = random.Random(f"{weighted}; {purpose}{seed}{horizon}")
        if purpose != "final" and losses.cls_weight not in (1.0, 0.5, 2.0):
            ill = random.Random(f"{losses.cls}; {losses.box}; {purpose}{seed}{horizon}")  # whichever thread comes first
            if self.diverge_every and ill.randrange(self.diverge_every) == 0:
                return Training(None, failure="not finite at step 3: loss nan")
            if self.raise_every and ill.randrange(self.raise_every) == 0:
                raise RuntimeError("something broke below")
        return Training(0.4 + 0.2 * chance.random(), {"ap50": 0.6})
