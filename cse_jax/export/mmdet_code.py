"""Code that exported modules for MMDetection consist of, beside the formula."""

IMPORTS = (
    "from mmdet.models.losses.utils import weight_reduce_loss",
    "from mmdet.registry import MODELS",
)

INIT = '''

@MODELS.register_module(force=True)
class {name}(torch.nn.Module):
    """{what}"""

    def __init__(self, {arguments}reduction="mean", loss_weight={weight!r}, **unused):
        super().__init__()
        self.reduction, self.loss_weight = reduction, loss_weight{assignments}
'''

LOSSES = {
    "box": '''
    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None, **unused):
        """Boxes [n, 4] as x1, y1, x2, y2, decoded."""
        pred, target = pred.float(), target.float()
        if weight is not None:
            weight = weight.mean(-1) if weight.dim() > 1 else weight
            pred = torch.where(weight[:, None] > 0, pred, target.detach())  # rows that don't count pass no gradient
        loss = formula(*areas(pred, target))
        if weight is not None:
            loss = torch.where(weight > 0, loss, 0)
        reduction = reduction_override or self.reduction
        return self.loss_weight * weight_reduce_loss(loss, weight, reduction, avg_factor)
''',
    "multi_class": '''
    def forward(self, cls_score, label, weight=None, avg_factor=None, reduction_override=None, iou=None, **unused):
        """Logits [n, C+1] and labels [n], the background last.

        ``iou`` [n] is that of each decoded box with its target, for rows of objects.  MMDetection's own heads don't
        pass it: ``w`` is then 1, as for background.
        """
        y = torch.nn.functional.one_hot(label, cls_score.shape[-1]).float()
        w = torch.ones_like(y)
        if iou is not None:
            background = label == cls_score.shape[-1] - 1
            w = torch.where(background, 1.0, iou.detach().float())[:, None].expand_as(y)
        reduction = reduction_override or self.reduction
        return self.loss_weight * weight_reduce_loss(formula(cls_score, y, w), weight, reduction, avg_factor)
''',
    "binary_class": '''
    iou = None  # [n] of each decoded box with its target, for the next call, from a head that knows it

    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None, **unused):
        """Logits [n, C] and labels [n], C for background.

        ``target`` may be ``(labels, iou)`` as of GFL's head.  From labels alone ``q`` is the label.
        """
        labels, iou = target if isinstance(target, (tuple, list)) else (target, self.iou)
        self.iou = None
        y = torch.nn.functional.one_hot(labels, pred.shape[-1] + 1)[:, :-1].float()
        q = y if iou is None else y * iou.detach().float()[:, None]
        balance = self.alpha * y + (1 - self.alpha) * (1 - y)
        if weight is not None and weight.dim() == 1:
            weight = weight[:, None]
        reduction = reduction_override or self.reduction
        loss = balance * formula(pred, q, y, 1 - y)
        return self.loss_weight * weight_reduce_loss(loss, weight, reduction, avg_factor)
''',
}

HEAD_IMPORTS = {
    "multi_class": (
        "from mmdet.models.losses import accuracy",
        "from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead",
        "from mmdet.structures.bbox import bbox_overlaps",
    ),
    "binary_class": (
        "from mmdet.models.dense_heads import ATSSHead, FCOSHead, RetinaHead",
        "from mmdet.structures.bbox import bbox_overlaps",
    ),
}

_TWO_STAGE = '''

@MODELS.register_module(force=True)
class {name}({base}):
    """Tells the loss the IoU of each decoded box with its target."""

    def loss(self, cls_score, bbox_pred, rois, labels, label_weights, bbox_targets, bbox_weights, **options):
        losses = super().loss(None, bbox_pred, rois, labels, label_weights, bbox_targets, bbox_weights, **options)
        boxes, targets = self.bbox_coder.decode(rois[:, 1:], bbox_pred.detach()), bbox_targets
        if not self.reg_class_agnostic:
            rows = torch.arange(len(labels), device=labels.device)
            boxes = boxes.reshape(len(labels), -1, 4)[rows, labels.clamp(max=self.num_classes - 1)]
        if not self.reg_decoded_bbox:
            targets = self.bbox_coder.decode(rois[:, 1:], targets)
        iou = bbox_overlaps(boxes, targets, is_aligned=True)
        factor = max((label_weights > 0).sum().item(), 1)
        losses["loss_cls"] = self.loss_cls(cls_score, labels, label_weights, avg_factor=factor, iou=iou, **options)
        losses["acc"] = accuracy(cls_score, labels)
        return losses
'''

_RETINA = '''

@MODELS.register_module(force=True)
class {name}({base}):
    """Tells the loss the IoU of each decoded box with its target."""

    def loss_by_feat_single(self, cls_score, bbox_pred, anchors, labels, weights, targets, *rest, **named):
        offsets = bbox_pred.detach().permute(0, 2, 3, 1).reshape(-1, 4)
        priors, boxes = anchors.reshape(-1, 4), targets.reshape(-1, 4)
        if not self.reg_decoded_bbox:
            boxes = self.bbox_coder.decode(priors, boxes)
        self.loss_cls.iou = bbox_overlaps(self.bbox_coder.decode(priors, offsets), boxes, is_aligned=True)
        given = cls_score, bbox_pred, anchors, labels, weights, targets
        return super().loss_by_feat_single(*given, *rest, **named)
'''

_ATSS = '''

@MODELS.register_module(force=True)
class {name}({base}):
    """Tells the loss the IoU of each decoded box with its target."""

    def loss_by_feat_single(self, anchors, cls_score, bbox_pred, centerness, labels, weights, targets, *rest, **named):
        offsets = bbox_pred.detach().permute(0, 2, 3, 1).reshape(-1, 4)
        boxes = self.bbox_coder.decode(anchors.reshape(-1, 4), offsets)
        self.loss_cls.iou = bbox_overlaps(boxes, targets.reshape(-1, 4), is_aligned=True)
        given = anchors, cls_score, bbox_pred, centerness, labels, weights, targets
        return super().loss_by_feat_single(*given, *rest, **named)
'''

_FCOS = '''

@MODELS.register_module(force=True)
class {name}({base}):
    """Tells the loss the IoU of each decoded box with its target."""

    def loss_by_feat(self, cls_scores, bbox_preds, *rest, **named):
        self.distances = torch.cat([level.detach().permute(0, 2, 3, 1).reshape(-1, 4) for level in bbox_preds])
        return super().loss_by_feat(cls_scores, bbox_preds, *rest, **named)

    def get_targets(self, points, batch_gt_instances):
        labels, targets = super().get_targets(points, batch_gt_instances)
        origin = self.distances.new_zeros(len(self.distances), 2)
        boxes = [self.bbox_coder.decode(origin, distances) for distances in (self.distances, torch.cat(targets))]
        self.loss_cls.iou = bbox_overlaps(*boxes, is_aligned=True)
        return labels, targets
'''

HEADS = {  # by space and MMDetection's head that one derives from
    "box": {},
    "multi_class": {"Shared2FCBBoxHead": _TWO_STAGE},
    "binary_class": {"RetinaHead": _RETINA, "ATSSHead": _ATSS, "FCOSHead": _FCOS},
}
