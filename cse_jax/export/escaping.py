"""Any text, made safe to stand in a format: one function for each."""

import html
import re


def xml(text: str) -> str:
    """Text as MathML and HTML show it."""
    return html.escape(text)


def latex(text: str) -> str:
    """Text as LaTeX shows it, outside of formulas and in names."""
    named = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return re.sub(r"[\\~^&%$#_{}]", lambda match: named.get(match[0], "\\" + match[0]), text)
