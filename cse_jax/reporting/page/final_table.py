"""The final comparison on the test split."""

from cse_jax.reporting.final_table import EXPLANATION, HEADER, UNTOUCHED, cells_of
from cse_jax.reporting.page.facts import Facts
from cse_jax.reporting.page.markup import Markup, part, table, tag


def section(facts: Facts) -> Markup:
    """The section of the final table."""
    rows = facts.result["table"]
    if not rows:
        return part("Test split", tag("p", "It is compared at the end of the search."), name="table")
    header = [*HEADER, "cls weight", "box weight"]
    cells = ([*cells_of(row), f"{row['cls']['weight']:g}", f"{row['box']['weight']:g}"] for row in rows)
    failed = [f"{row['name']}: {failure}" for row in rows for failure in row["failures"]]
    return part(
        "Test split",
        table("AP on the test split, and the difference of the last row to each", header, cells),
        tag("p", EXPLANATION.replace("*", "")),
        tag("p", UNTOUCHED),
        *(tag("p", failure) for failure in failed),
        name="table",
    )
