"""What the detectors of the final table see on test images, the default losses' beside the discovered pair's."""

from cse_jax import workdir
from cse_jax.reporting.page.facts import Facts
from cse_jax.reporting.page.markup import Markup, part, tag

FILE = "pictures.json"  # {"about": text, "rows": [[{"title": text, "alt": text, "jpeg": base64}, ...], ...]}


def section(facts: Facts) -> Markup:
    """The section of the pictures, which whoever trains the detectors has left in the folder."""
    file = facts.folder / FILE
    if not facts.finished or not file.is_file():
        return part("On test images", tag("p", "There are no pictures."), name="pictures")
    found = workdir.read_json(file, "remove it; the page then has no pictures")
    rows = [
        tag(
            "div",
            *(
                tag(
                    "figure",
                    tag("img", src=f"data:image/jpeg;base64,{picture['jpeg']}", alt=picture["alt"]),
                    tag("figcaption", picture["title"]),
                )
                for picture in row
            ),
            class_="row",
        )
        for row in found["rows"]
    ]
    return part("On test images", tag("p", found["about"]), *rows, name="pictures")
