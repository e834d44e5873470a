"""Formulas as loss modules for MMDetection 3, which register themselves, with the lines of config that use them."""

import textwrap

from cse_jax.errors import InputError
from cse_jax.export.source_code import description, function
from cse_jax.language.expression import Expression

_IMPORTS = (
    "from mmdet.models.losses.utils import weight_reduce_loss",
    "from mmdet.registry import MODELS",
)

_HEAD = '''

@MODELS.register_module()
class {name}(torch.nn.Module):
    """{what}"""

    def __init__(self, {arguments}reduction="mean", loss_weight={weight!r}):
        super().__init__()
        self.reduction, self.loss_weight = reduction, loss_weight{assignments}
'''

_BOX = '''
    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None, **kwargs):
        """Boxes [n, 4] as x1, y1, x2, y2; needs a head that decodes its boxes (``reg_decoded_bbox=True``)."""
        top_left = torch.maximum(pred[:, :2], target[:, :2])
        bottom_right = torch.minimum(pred[:, 2:], target[:, 2:])
        i = torch.prod(torch.clamp(bottom_right - top_left, min=0), dim=-1)
        own = [torch.prod(torch.clamp(box[:, 2:] - box[:, :2], min=0), dim=-1) for box in (pred, target)]
        u = own[0] + own[1] - i + 1e-7
        outer = torch.maximum(pred[:, 2:], target[:, 2:]) - torch.minimum(pred[:, :2], target[:, :2])
        e = torch.prod(outer, dim=-1) + 1e-7
        if weight is not None and weight.dim() > 1:
            weight = weight.mean(-1)
        reduction = reduction_override or self.reduction
        return self.loss_weight * weight_reduce_loss(formula(i, u, e), weight, reduction, avg_factor)
'''

_MULTI_CLASS = '''
    def forward(self, cls_score, label, weight=None, avg_factor=None, reduction_override=None, iou=None, **kwargs):
        """Logits [n, C+1] and labels [n], the background last.

        ``iou`` [n] is that of each decoded box with its target.  MMDetection's heads don't pass it: it is then 1, as
        for background, and a formula that uses ``w`` is not the one that was searched.
        """
        y = torch.nn.functional.one_hot(label, cls_score.shape[-1]).to(cls_score.dtype)
        w = torch.ones_like(cls_score)
        if iou is not None:
            background = label == cls_score.shape[-1] - 1
            w = torch.where(background, 1.0, iou.detach().to(cls_score.dtype))[:, None].expand_as(cls_score)
        reduction = reduction_override or self.reduction
        return self.loss_weight * weight_reduce_loss(formula(cls_score, y, w), weight, reduction, avg_factor)
'''

_BINARY_CLASS = '''
    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None, **kwargs):
        """Logits [n, C] and labels [n], C for background.

        ``target`` may be ``(labels, quality)`` as for ``QualityFocalLoss``, with the IoU of each decoded box [n].  From
        labels alone the quality is 1, and a formula that uses ``q`` is not the one that was searched.
        """
        labels, quality = target if isinstance(target, (tuple, list)) else (target, None)
        y = torch.nn.functional.one_hot(labels, pred.shape[-1] + 1)[:, :-1].to(pred.dtype)
        q = y if quality is None else y * quality.detach().to(pred.dtype)[:, None]
        balance = self.alpha * y + (1 - self.alpha) * (1 - y)
        if weight is not None and weight.dim() == 1:
            weight = weight[:, None]
        reduction = reduction_override or self.reduction
        loss = balance * formula(pred, q, y, 1 - y)
        return self.loss_weight * weight_reduce_loss(loss, weight, reduction, avg_factor)
'''

_PARTS = {  # by space: class name, what, extra arguments, forward, config
    "box": ("SearchedBoxLoss", "Box regression loss on decoded boxes.", (), _BOX, "loss_bbox=dict(type={name!r})"),
    "multi_class": (
        "SearchedClsLoss",
        "Softmax classification loss.",
        (),
        _MULTI_CLASS,
        "loss_cls=dict(type={name!r})",
    ),
    "binary_class": (
        "SearchedClsLoss",
        "Sigmoid classification loss; ``alpha`` balances positives outside the formula.",
        (("use_sigmoid", True), ("alpha", 0.25)),
        _BINARY_CLASS,
        "loss_cls=dict(type={name!r}, use_sigmoid=True)",
    ),
}


def module(expression: Expression, *, title: str, weight: float, notes: str) -> str:
    """A file with the loss as a registered module; its docstring has the lines for the config.

    Raises:
      InputError: MMDetection has no loss with the inputs of this space.
    """
    space = expression.space
    if space.name not in _PARTS:
        raise InputError(f"MMDetection has no loss of space {space.name}; export it as pytorch")
    name, what, arguments, forward, config = _PARTS[space.name]
    lines = [
        notes,
        "",
        "For MMDetection 3.  Save this file as searched_loss.py where Python finds it, and write in the config:",
        "",
        '    custom_imports = dict(imports=["searched_loss"], allow_failed_imports=False)',
        f"    model = dict({_where(space.name)}{config.format(name=name)}{')' * _where(space.name).count('(')})",
    ]
    head = _HEAD.format(
        name=name,
        what=what,
        weight=weight,
        arguments="".join(f"{argument}={value!r}, " for argument, value in arguments),
        assignments="".join(f"\n        self.{argument} = {argument}" for argument, _ in arguments),
    )
    docstring = description(expression, title=title, notes="\n".join(lines))
    shape = "per row" if space.per_row else "per element"
    code = function(expression, "pytorch", name="formula", docstring=f"The loss {shape}.", preamble=_IMPORTS)
    return f"{docstring}\n\n{code}{textwrap.dedent(head)}{forward}"


def _where(space: str) -> str:
    """Where the detectors of a space keep the loss."""
    if space == "multi_class":
        return "roi_head=dict(bbox_head=dict("
    return "bbox_head=dict("
