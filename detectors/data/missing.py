"""Why an image that the annotations name may be missing."""

import os
import pathlib


def likely_cause(path: pathlib.Path, root: pathlib.Path) -> str:
    """Where a file that is missing below root seems to be, in words to add to a message; empty if nowhere."""
    folder = path.parent
    try:
        there = os.listdir(folder) if folder.is_dir() else []
        alike = next((name for name in there if name.casefold() == path.name.casefold()), None)
        if alike:
            return f"; {alike} is there: correct upper and lower case"
        alike = next((name for name in there if pathlib.PurePath(name).stem == path.stem), None)
        if alike:
            return f"; {alike} is there: correct the suffix"
        if path.name:
            found = next(root.rglob(_literal(path.name)), None)
            if found is not None and found.is_file():
                return f"; {found.relative_to(root)} is there: correct the folder of the images or the file names"
    except (OSError, ValueError):
        pass
    return f"; the folder {folder} does not exist" if not folder.is_dir() else ""


def _literal(name: str) -> str:
    """A pattern that matches this name only."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
