"""The settings that a ledger's results depend on, and what of them may differ when it is opened again."""

import json
from collections.abc import Mapping
from typing import Any

from cse_jax import workdir
from cse_jax.search.ledger_file import LedgerError

_UNSET = '""'  # of a setting that is new since the ledger was made, and not used
_FREE = {f"config.{field}" for field in workdir.FREE}
_SHOWN = 5  # differences that an error lists


def flat(tree: Mapping[str, Any]) -> dict[str, str]:
    """Settings as JSON, by their keys in the tree, joined by dots."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{below}": text for below, text in flat(value).items()}
        else:
            found[key] = json.dumps(value, sort_keys=True)
    return found


def changes(stored: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """What differs between settings, but for those that results don't depend on, as ``before -> now`` by key."""
    return {
        key: f"{stored.get(key, 'absent')} -> {now.get(key, 'absent')}"
        for key in sorted((now.keys() | stored.keys()) - _FREE)
        if now.get(key, _UNSET) != stored.get(key, _UNSET)
    }


def check(made: str, changed: Mapping[str, str], allowed: Mapping[str, bool], *, allow_device_change: bool) -> None:
    """Raises LedgerError for what must not differ.

    Args:
      made: which ledger was made with other settings.
      changed: as ``changes`` gives it.
      allowed: the keys that may differ.
      allow_device_change: whether the device may differ, too.
    """
    refused = [key for key in changed if key not in allowed]
    if not refused or (allow_device_change and refused == ["device"]):
        return
    shown = "; ".join(f"{key}: {changed[key]}" for key in refused[:_SHOWN])
    more = f" and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
    raise LedgerError(
        f"the ledger {made} was made with other settings ({shown}{more}). "
        "Resume with the settings it was made with, or choose another work folder."
        + (" A change of device can be allowed (allow_device_change)." if refused == ["device"] else "")
    )
