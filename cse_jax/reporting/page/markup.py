"""Elements of a page, whose texts are escaped unless they are markup already.

A page is HTML that is well-formed XML, too, so that a parser can tell whether anything slipped through.
"""

import html
import re
from collections.abc import Iterable, Sequence

_VOID = frozenset({"meta", "br", "line", "path", "rect", "circle", "image", "img"})  # what is closed where it is opened
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # characters that XML cannot hold


class Markup(str):
    """Text that stands in a page as it is."""


def escaped(text: object) -> Markup:
    """Any text as a page may hold it, between tags or in an attribute; whatever ledgers and configs say comes this way.

    Markup stays as it is.  What no page can hold, such as the bytes of a file name that are no UTF-8, is a question
    mark in a box.
    """
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(_FORBIDDEN.sub("\ufffd", str(text)), quote=True))


def tag(element: str, *children: object, **attributes: object) -> Markup:
    """An element.

    Args:
      element: its name.
      *children: markup, or texts, which are escaped; None is left out.
      **attributes: by name, with a ``_`` for each ``-`` and at the end of a Python keyword; None is left out.
    """
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if element in _VOID and not children:
        return Markup(f"<{element}{shown}/>")
    return Markup(f"<{element}{shown}>{joined(children)}</{element}>")


def joined(parts: Iterable[object]) -> Markup:
    """Markup and texts, one after the other."""
    return Markup("".join(escaped(part) for part in parts if part is not None))


def part(heading: str, *children: object, name: str) -> Markup:
    """A part of a page with its heading, to which ``#name`` leads."""
    return tag(
        "section", tag("h2", heading, id=f"{name}-heading"), *children, id=name, aria_labelledby=f"{name}-heading"
    )


def scrolled(*children: object, label: str) -> Markup:
    """What may be wider than the screen, to be scrolled also by keyboard."""
    return tag("div", *children, class_="scroll", tabindex="0", role="region", aria_label=label)


def table(caption: str, header: Sequence[object], rows: Iterable[Sequence[object]]) -> Markup:
    """A table whose rows begin with what they are about."""
    head = tag("tr", *(tag("th", cell, scope="col") for cell in header))
    body = (tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in rest)) for first, *rest in rows)
    inside = tag("caption", caption), tag("thead", head), tag("tbody", *body)
    return scrolled(tag("table", *inside), label=caption)


def folded(summary: str, *children: object) -> Markup:
    """What is shown on demand."""
    return tag("details", tag("summary", summary), *children)
