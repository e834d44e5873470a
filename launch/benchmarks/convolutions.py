"""Our convolutions beside XLA's own: forward, and the gradients in images and kernel."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax

from benchmarks.report import Report
from benchmarks.timing import alternate, milliseconds, ratio
from detectors.models.convolution import convolve


class Case(NamedTuple):
    """A convolution without bias.

    Attributes:
      name: where detectors have it.
      images: batch, height, width, channels.
      kernel: height, width, channels of a group, outputs.
      stride: in both directions.
    """

    name: str
    images: tuple[int, int, int, int]
    kernel: tuple[int, int, int, int]
    stride: int = 1

    @property
    def groups(self) -> int:
        """Groups of channels."""
        return self.images[-1] // self.kernel[2]


_CASES = {
    "smallest": [Case("small", (2, 8, 8, 4), (3, 3, 4, 4))],
    "small": [
        Case("head, digit scenes", (16, 12, 12, 64), (3, 3, 64, 64)),
        Case("bottleneck, R50", (2, 64, 80, 64), (1, 1, 64, 256)),
        Case("MobileNet", (4, 56, 80, 128), (3, 3, 1, 128)),
        Case("pyramid, R50, 256 x 320", (2, 64, 80, 256), (3, 3, 256, 256)),
    ],
    "full": [
        Case("bottleneck, R50, stride 4", (2, 200, 336, 64), (3, 3, 64, 64)),
        Case("bottleneck, R50, stride 8", (2, 200, 336, 128), (3, 3, 128, 128), stride=2),
        Case("bottleneck, R50, stride 8", (2, 100, 168, 128), (3, 3, 128, 128)),
        Case("bottleneck, R50, stride 16", (2, 50, 84, 256), (3, 3, 256, 256)),
        Case("pyramid, R50, stride 4", (2, 200, 336, 256), (3, 3, 256, 256)),
    ],
}


def measure(report: Report, *, size: str, rounds: int) -> None:
    """The suite's table."""
    for case in _CASES[size]:
        report.say(case.name)
        ours, xla = _functions(case, convolve), _functions(case, lax.conv_general_dilated)
        for part in ours:
            seconds = alternate({"ours": ours[part], "XLA's": xla[part]}, rounds)
            median, each = ratio(seconds, "ours", "XLA's")
            row = {
                "convolution": case.name,
                "images": " x ".join(map(str, case.images)),
                "kernel": " x ".join(map(str, case.kernel)),
                "stride": case.stride,
                "ours, ms": milliseconds(seconds["ours"]),
                "XLA's, ms": milliseconds(seconds["XLA's"]),
                "ratio": median,
                "each round": each,
            }
            report.row(f"Convolutions: {part}", row)


def _functions(case: Case, convolution: Callable) -> dict[str, Callable[[], object]]:
    keys = jax.random.split(jax.random.key(0))
    images, kernel = jax.random.normal(keys[0], case.images), jax.random.normal(keys[1], case.kernel)

    @jax.jit
    def forward(images, kernel):
        return convolution(
            images,
            kernel,
            (case.stride, case.stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=case.groups,
        )

    cotangent = forward(images, kernel)
    to_images = jax.jit(lambda images, kernel, g: jax.vjp(lambda a: forward(a, kernel), images)[1](g))
    to_kernel = jax.jit(lambda images, kernel, g: jax.vjp(lambda a: forward(images, a), kernel)[1](g))
    return {
        "forward": lambda: forward(images, kernel),
        "gradient in images": lambda: to_images(images, kernel, cotangent),
        "gradient in kernel": lambda: to_kernel(images, kernel, cotangent),
    }
