"""Code that puts exported losses into Ultralytics' detection models."""

_BOX = '''

class SearchedBboxLoss(torch.nn.Module):
    """Ultralytics' loss of boxes with another in the place of CIoU; its second part (DFL or L1) stays."""

    def __init__(self, original, units):
        super().__init__()
        self.original, self.units, self.loss = original, units, SearchedLoss()

    def forward(self, pred_dist, pred_bboxes, points, target_bboxes, scores, scores_sum, fg_mask, imgsz, stride):
        second = self.original(
            pred_dist, pred_bboxes, points, target_bboxes, scores, scores_sum, fg_mask, imgsz, stride
        )[1]
        pred, target = pred_bboxes[fg_mask].float(), target_bboxes[fg_mask].float()
        if self.units == "pixels":
            pixels = stride.float().expand(*fg_mask.shape, 1)[fg_mask]
            pred, target = pred * pixels, target * pixels
        return (self.loss(pred, target) * scores[fg_mask].sum(-1)).sum() / scores_sum, second


def install(model, units=UNITS):
    """Puts the loss in the place of CIoU.

    Args:
      model: a ``YOLO`` before ``train``, or the ``DetectionModel`` of your own loop, its ``args`` set; it is changed.
      units: ``"pixels"`` of the training image, or ``"strides"`` of each level, in which Ultralytics has its boxes.
    """
    if units not in ("pixels", "strides"):
        raise ValueError(f"units are 'pixels' or 'strides', not {units!r}")

    def replace(criterion):
        criterion.bbox_loss = SearchedBboxLoss(criterion.bbox_loss, units)

    return each_criterion(model, replace)
'''

_CLASS = '''

class SearchedBce(torch.nn.Module):
    """In the place of Ultralytics' binary cross-entropy with its target scores, which are ``q``.

    They are task-aligned, not the IoU: ``score**0.5 * iou**6`` of each anchor, scaled so that the best anchor of an
    object has the best IoU of the object's anchors.  An anchor with an object has a label ``y`` of 1 where its target
    score is not 0.
    """

    def __init__(self):
        super().__init__()
        self.loss = SearchedLoss()

    def forward(self, pred, scores):
        return self.loss(pred, scores > 0, scores)


def install(model):
    """Puts the loss in the place of the binary cross-entropy.

    Args:
      model: a ``YOLO`` before ``train``, or the ``DetectionModel`` of your own loop, its ``args`` set; it is changed.
    """

    def replace(criterion):
        criterion.bce = SearchedBce()

    return each_criterion(model, replace)
'''

_EACH = '''

def each_criterion(model, replace):
    """Calls ``replace`` with each criterion of a DetectionModel, or of those that a YOLO will train."""
    if hasattr(model, "add_callback"):

        def started(trainer):
            for own in (trainer.model, trainer.ema.ema):
                each_criterion(getattr(own, "module", own), replace)

        model.add_callback("on_train_start", started)
        return model
    if getattr(model, "criterion", None) is None:
        model.criterion = model.init_criterion()
    criterion = model.criterion
    parts = [getattr(criterion, name, None) for name in ("one2many", "one2one")]  # of models without NMS
    for part in [criterion] if None in parts else parts:
        if not hasattr(part, "bbox_loss"):
            raise ValueError(f"{type(model).__name__} has no loss like YOLOv8's: it has a {type(part).__name__}")
        replace(part)
    return model
'''

CODE = {"box": _BOX + _EACH, "binary_class": _CLASS + _EACH}  # by space

USAGE = """
For Ultralytics 8.4, detection with the loss of YOLOv8 (YOLO11, 26 and others have it too).  Save this file where
Python finds it, say as searched_loss.py:

    import searched_loss
    from ultralytics import YOLO
    model = searched_loss.install(YOLO("yolov8n.yaml"))
    model.train(data="coco8.yaml", box=1.0, cls=1.0)

A model takes a box loss and a classification loss, each from its own file.  Ultralytics multiplies them by its gains,
box=7.5 and cls=0.5 if nothing is set, which are made for CIoU and BCE: with 1 a loss has the weight of its search.
Each box counts by its target score, and both sums are divided by the sum of target scores, which is below the number
of positives.  On several GPUs Ultralytics starts processes that know nothing of this call: use one, or call install
in a trainer of your own.
"""
