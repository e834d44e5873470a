"""A trainer that costs nothing."""

import random

from cse_jax.language import spaces
from cse_jax.search.task import Task
from cse_jax.search.trainer import OutOfMemory, Training


class FakeTrainer:
    """Scores losses by a hash; diverges, runs out of memory, breaks, or interrupts the search at chosen trainings."""

    shared_start = False
    task = Task(spaces.BINARY_CLASS, "strides")

    def __init__(
        self, *, interrupt_at: int = -1, diverge_every: int = 0, break_at: int = -1, most_at_once: int = 8
    ) -> None:
        self.count = self.calls = self.forgotten = self.prepared = 0
        self.interrupt_at, self.diverge_every, self.break_at = interrupt_at, diverge_every, break_at
        self.most_at_once = most_at_once

    def horizons(self, purpose):
        return {"probe": (2, 4), "overfit": (5,), "proxy": (10, 20), "final": (30,)}[purpose]

    def at_once(self, purpose):
        return 8 if purpose == "probe" else 1

    def forget(self, losses, *, purpose, seed):
        self.forgotten += 1

    def gradient_norms(self, losses):
        return [(1.0 + len(pair.cls), 2.0 * len(pair.box)) for pair in losses]

    def prepare(self):
        self.prepared += 1

    def train(self, losses, *, purpose, seed, horizon, stop):
        self.calls += 1
        if len(losses) > self.most_at_once:
            raise OutOfMemory(f"{len(losses)} trainings at once are too many")
        return [self.train_one(pair, purpose, seed, horizon) for pair in losses]

    def train_one(self, losses, purpose, seed, horizon):
        self.count += 1
        if self.count == self.interrupt_at:
            raise KeyboardInterrupt
        if self.count == self.break_at:
            raise RuntimeError("something broke below")
        weighted = f"{losses.cls_weight} x {losses.cls}; {losses.box_weight} x {losses.box}"
        chance = random.Random(f"{weighted}; {purpose}{seed}{horizon}")
        if purpose != "final" and losses.cls_weight not in (1.0, 0.5, 2.0):
            ill = random.Random(f"{losses.cls}; {losses.box}; {purpose}{seed}{horizon}")  # whichever thread comes first
            if self.diverge_every and ill.randrange(self.diverge_every) == 0:
                return Training(None, failure="not finite at step 3: loss nan")
        return Training(0.4 + 0.2 * chance.random(), {"ap50": 0.6})
