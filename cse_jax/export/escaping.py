"""Any text, made safe to stand in a format: one function for each."""

import html
import re


def docstring(text: str) -> str:
    """Text as it stands between triple quotes in Python."""
    escaped = "\n".join(map(_printable, text.split("\n"))).replace("\\", r"\\")
    return re.sub(r'"{3,}|"+$', lambda quotes: quotes[0].replace('"', r"\""), escaped)


def xml(text: str) -> str:
    """Text as MathML and HTML show it."""
    return html.escape(_printable(text))


def latex(text: str) -> str:
    """Text as LaTeX shows it, outside of formulas and in names."""
    named = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return re.sub(r"[\\~^&%$#_{}]", lambda match: named.get(match[0], "\\" + match[0]), _printable(text))


def markdown(text: str) -> str:
    """Text as Markdown shows it, within a line."""
    return re.sub(r"[!-/:-@\[-`{-~]", lambda match: "\\" + match[0], _printable(text).strip())


def markdown_name(text: str) -> str:
    """Text as Markdown shows it within a line, legible also as it is written: only what would be markup is escaped."""
    return re.sub(r"[\\`*<\[~&$]|(?<!\w)_|_(?!\w)", lambda match: "\\" + match[0], _printable(text).strip())


def _printable(text: str) -> str:
    """Text on one line, without characters that files and terminals take as commands or can't hold."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)
