"""A search that goes on with more: which settings may change in its folder, and what that leaves valid."""

from collections.abc import Mapping

from cse_jax.errors import InputError
from cse_jax.search.ledger import Ledger

_AGAIN = "the final comparison is made again, and what it has trained before stays valid"
_OF_A_BRANCH = {
    "generations": "the finished generations stay valid",
    "proxy_seeds": "the generations are made again, because better known scores choose other parents; what was "
    "trained stays valid",
}
_BRANCHES = ("classification", "regression")
_EFFECTS = {  # by the key of the ledger's identity
    "config.name": "nothing depends on it",
    **{
        f"config.search.final.{name}": _AGAIN for name in ("seeds", "fit_weights", "branches", "random_search", "tuned")
    },
    **{f"config.search.{branch}.{name}": effect for branch in _BRANCHES for name, effect in _OF_A_BRANCH.items()},
}
EXTENDABLE: Mapping[str, bool] = {key: not key.endswith("proxy_seeds") for key in _EFFECTS}  # as ``Ledger`` takes them


def effects(ledger: Ledger) -> list[str]:
    """What has changed since the ledger was written, and what that leaves valid, in sentences."""
    return [f"{key}: {change}: {_EFFECTS[key]}." for key, change in ledger.changed.items()]


def refuse_fewer(ledger: Ledger, branch: str, generations: int) -> None:
    """Refuses a branch that has more generations than it is to have.

    Raises:
      InputError: says so.
    """
    bred = number = 0
    while recorded := ledger.generation(branch, number):
        bred, number = bred + ("proposed" not in recorded[1]), number + 1
    if bred > generations:
        raise InputError(
            f"the ledger {ledger.path} has more than {generations} generations of the branch {branch}, and none is "
            "taken back: set its generations higher, or choose another work folder"
        )
