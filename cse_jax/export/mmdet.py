"""Formulas as loss modules for MMDetection 3, which register themselves, with the lines of config that use them."""

import hashlib

from cse_jax.errors import InputError
from cse_jax.export.mmdet_code import HEAD_IMPORTS, HEADS, IMPORTS, INIT, LOSSES
from cse_jax.export.source_code import description, function
from cse_jax.export.torch_code import AREAS
from cse_jax.language.expression import Expression

_PARTS = {  # by space: part of a detector, what the loss is, arguments of its class, the input that only our heads pass
    "box": ("bbox", "Box regression loss on decoded boxes.", {}, ""),
    "multi_class": ("cls", "Softmax classification loss.", {}, "Z"),
    "binary_class": (
        "cls",
        "Sigmoid classification loss; ``alpha`` balances positives outside the formula.",
        {"use_sigmoid": True, "alpha": 0.25},  # MMDetection asks the config of dense heads for the first
        "Q",
    ),
}

_USAGE = """
For MMDetection 3.  Save this file as {file}.py where Python finds it.
Write in the config, below _base_, this line and those of the detector.  Join them if there are two losses.

    custom_imports = dict(imports=["{file}"], allow_failed_imports=False)
"""

_ROI_HEAD = """
    model = dict(roi_head=dict(bbox_head=dict({head}
        {loss})))
"""

_CASCADE = """
    model = dict(roi_head=dict(bbox_head=[dict(
        type="{head}", in_channels=256, fc_out_channels=1024, roi_feat_size=7,
        num_classes=80, reg_class_agnostic=True,
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=stds),
        {other},
        {loss}) for stds in (
            [0.1, 0.1, 0.2, 0.2],
            [0.05, 0.05, 0.1, 0.1],
            [0.033, 0.033, 0.067, 0.067])]))
"""

_DENSE = """
    model = dict(bbox_head=dict({head}
        {loss}))
"""


def module(expression: Expression, *, title: str, weight: float, notes: str) -> str:
    """A file with the loss as a registered module; its docstring has the lines for the config.

    A classification loss that looks at the IoU of the boxes comes with the heads that pass it.

    Raises:
      InputError: MMDetection has no loss with the inputs of this space.
    """
    space = expression.space
    if space.name not in _PARTS:
        raise InputError(f"MMDetection has no loss of space {space.name}; export it as pytorch")
    part, what, arguments, quality = _PARTS[space.name]
    mark = hashlib.sha256(f"{space.name} {expression}".encode()).hexdigest()[:8]
    name = f"Searched{part.capitalize()}Loss{mark}"
    bases = HEADS[space.name] if quality in expression.variables else {}
    heads = {base: name.replace("Loss", base) for base in bases}
    entries = {"type": name} | arguments | {"loss_weight": weight}
    usage = _USAGE.format(file=f"searched_{part}_loss_{mark}") + "".join(
        f"\n{detector}:\n{lines}" for detector, lines in _configs(space.name, entries, heads).items()
    )
    init = INIT.format(
        name=name,
        what=what,
        weight=weight,
        arguments="".join(f"{argument}={value!r}, " for argument, value in arguments.items()),
        assignments="".join(f"\n        self.{argument} = {argument}" for argument in arguments),
    )
    code = function(
        expression,
        "pytorch",
        name="formula",
        docstring=f"The loss {'per row' if space.per_row else 'per element'}.",
        preamble=(*IMPORTS, *(HEAD_IMPORTS[space.name] if heads else ())),
    )
    classes = "".join(bases[base].format(name=head, base=base) for base, head in heads.items())
    docstring = description(expression, title=title, notes=f"{notes}\n{usage}".rstrip())
    areas = AREAS if space.name == "box" else ""
    return f"{docstring}\n\n{code}{areas}{init}{LOSSES[space.name]}{classes}"


def _configs(space: str, entries: dict, heads: dict[str, str]) -> dict[str, str]:
    """Lines of config that use a loss, by detector; ``heads`` are ours by those that they derive from."""

    def loss(part: str, *, instead: bool = True) -> str:
        values = ", ".join(f"{key}={value!r}" for key, value in entries.items())
        return f"loss_{part}=dict({'_delete_=True, ' * instead}{values})"

    def head(base: str) -> str:
        return f'\n        type="{heads[base]}",' if base in heads else ""

    two_stage, cascade = "Faster and Mask R-CNN", "Cascade R-CNN (a config can only write its list of heads anew)"
    if space == "multi_class":
        base = "Shared2FCBBoxHead"
        l1 = 'loss_bbox=dict(type="SmoothL1Loss", beta=1.0, loss_weight=1.0)'
        return {
            two_stage: _ROI_HEAD.format(head=head(base), loss=loss("cls")),
            cascade: _CASCADE.format(head=heads.get(base, base), other=l1, loss=loss("cls", instead=False)),
        }
    if space == "binary_class":
        dense = {
            name: _DENSE.format(head=head(base), loss=loss("cls"))
            for name, base in (("RetinaNet", "RetinaHead"), ("ATSS", "ATSSHead"), ("FCOS", "FCOSHead"))
        }
        gfl = "GFL (its head tells the loss the IoU of each box)" if heads else "GFL"
        return dense | {gfl: _DENSE.format(head="", loss=loss("cls"))}
    decoded = "reg_decoded_bbox=True,\n        "
    softmax = 'loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0)'
    return {
        f"{two_stage}, boxes in pixels": _ROI_HEAD.format(head="", loss=decoded + loss("bbox")),
        f"{cascade}, boxes in pixels": _CASCADE.format(
            head="Shared2FCBBoxHead", other=softmax, loss=decoded + loss("bbox", instead=False)
        ),
        "RetinaNet, boxes in pixels": _DENSE.format(head="", loss=decoded + loss("bbox")),
        "FCOS (boxes in pixels, with norm_on_bbox=True in strides), ATSS (in pixels) and GFL (in strides)": (
            _DENSE.format(head="", loss=loss("bbox"))
        ),
    }
