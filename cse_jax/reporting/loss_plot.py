"""A loss and its gradient beside the default's, as an image file."""

import pathlib

from cse_jax.errors import InputError
from cse_jax.language import zoo
from cse_jax.language.expression import Expression
from cse_jax.reporting.page.sweeps import curves, sweeps


def save(path: pathlib.Path, formula: Expression, weight: float, *, units: str) -> None:
    """Writes a PNG: a column for each sweep, the loss above its gradient.

    Args:
      path: of the file, which ends in ``.png``.
      formula, weight: the loss.
      units: unit of length of boxes, one of ``space.units``.

    Raises:
      InputError: the name of the file ends otherwise, or matplotlib is missing.
    """
    if path.suffix != ".png":
        raise InputError(f"the plot {path} must end in .png")
    try:
        from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]  # of an extra
    except ImportError as error:
        raise InputError(
            "a plot needs matplotlib, which comes with the extra plot: python -m pip install '.[plot]'"
        ) from error
    lines = sweeps(formula.space, units)
    name, default = zoo.default_name(formula.space), zoo.default(formula.space)
    both = [(name, curves(default, 1.0, units), "--"), ("the loss", curves(formula, weight, units), "-")]
    figure = Figure(figsize=(4.0 * len(lines), 6.0), layout="constrained")
    axes = figure.subplots(2, len(lines), squeeze=False)
    for column, sweep in enumerate(lines):
        for label, found, style in both:
            axes[0, column].plot(sweep.x, found[column].value, style, label=label)
            axes[1, column].plot(sweep.x, found[column].gradient, style, label=label)
        axes[0, column].set_title(sweep.title)
        axes[1, column].set_xlabel(sweep.axis)
    axes[0, 0].set_ylabel(f"{weight:.3g} x loss, above its lowest value")
    axes[1, 0].set_ylabel("gradient")
    axes[0, 0].legend()
    text = str(formula)
    figure.suptitle(text if len(text) < 160 else f"{text[:157]}...", parse_math=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
