"""How long the trainings of a search are."""

import dataclasses

from cse_jax.ranges import Count, Horizons, Positive


@dataclasses.dataclass
class ScheduleConfig:
    """Length of the trainings of a search, in steps.

    Attributes:
      probe: steps at which heads on fixed features, trained on one image per category, are scored; the last is the end.
      probe_images: of the select split, on which they are scored.
      probe_at_once: heads trained side by side, spread over the devices; rounded up to a multiple of these.
      overfit: of whole detectors on one image per category (model optimization simulation).
      proxy: steps at which trainings on the train split are scored on the select split; the last is the end.
      final: on the train split, scored on the test split.
      table: steps at which trainings for the table of trained losses are scored on both other splits; the last is the
        end.
      start: steps for which the default losses train one detector, with which all trainings on the train split then
        begin, output layers excepted; 0 for none: they begin from scratch.
      at_once: whole detectors trained side by side, spread likewise; 1 for one whose batches all devices share; 0 for
        one on a CPU, and elsewhere for as many as fit the memory and make it faster.
      save_every: steps between checkpoints from which an interrupted training resumes; 0 for none.
    """

    probe: Horizons = (30, 60)
    probe_images: Positive = 64
    probe_at_once: Positive = 32
    overfit: Positive = 60
    proxy: Horizons = (120, 300)
    final: Positive = 300
    table: Horizons = (300,)
    start: Count = 0
    at_once: Count = 0
    save_every: Count = 0
