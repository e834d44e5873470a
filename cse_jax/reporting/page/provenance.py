"""How a search was run: the command, versions, device, time and config."""

import json

from cse_jax.reporting.page.facts import Facts
from cse_jax.reporting.page.markup import Markup, folded, part, scrolled, tag


def section(facts: Facts) -> Markup:
    """The last section."""
    result = facts.result
    known = {
        "folder": facts.folder,
        "hand-made losses among the first population": result.get("seeding"),
        "loss scale": result.get("scale"),
        "device": result.get("device"),
        "hours": f"{result['seconds'] / 3600.0:.3f}" if "seconds" in result else None,
        **result.get("versions", {}),
    }
    items = [part for what, value in known.items() if value is not None for part in (tag("dt", what), tag("dd", value))]
    command = result.get("command")
    again = (
        [
            tag("p", "Where it was run, this command resumes the search, or runs it again in another folder:"),
            _lines(command),
        ]
        if command
        else [tag("p", "The command was not recorded; the config below has all that it set.")]
    )
    config = folded("Config, as it was run", _lines(json.dumps(result["config"], indent=2)))
    return part("How it was run", *again, tag("dl", *items), config, name="run")


def _lines(text: str) -> Markup:
    return scrolled(tag("pre", text), label="to copy")
