"""Code that puts exported losses into torchvision's detectors."""

_ROIS = '''

class RoILoss:
    """Replaces one of the losses of torchvision's RoIHeads, which does not tell its loss the proposals."""

    def __init__(self, heads, loss):
        self.loss, self.sample = loss, heads.select_training_samples
        heads.select_training_samples = self.sampled
        heads.box_predictor.register_forward_hook(self.predicted)
        heads.register_forward_hook(self.finished)

    def sampled(self, proposals, targets):
        proposals, matched, labels, offsets = self.sample(list(proposals), targets)
        self.rois, self.labels = torch.cat(proposals), torch.cat(labels)
        self.truth = torch.cat([t["boxes"][m[k > 0]] for t, m, k in zip(targets, matched, labels)])
        return proposals, matched, labels, offsets

    def predicted(self, predictor, inputs, outputs):
        if predictor.training:
            self.logits, self.offsets = outputs

    def finished(self, heads, inputs, outputs):
        if not heads.training:
            return None
        objects = self.labels > 0
        offsets = self.offsets.float().reshape(len(objects), -1, 4)[objects, self.labels[objects]]
        boxes = heads.box_coder.decode_single(offsets, self.rois[objects])
        detections, losses = outputs
        name, value = self.replaced(objects, boxes)
        del self.rois, self.labels, self.truth, self.logits, self.offsets
        return detections, losses | {name: value}
'''

_BOX_ROIS = """
    def replaced(self, objects, boxes):
        return "loss_box_reg", self.loss(boxes, self.truth).sum() / len(objects)
"""

_CLASS_ROIS = """
    def replaced(self, objects, boxes):
        quality = boxes.new_ones(len(objects))
        quality[objects] *= iou(boxes, self.truth)
        return "loss_classifier", self.loss(self.logits, self.labels, quality).mean()
"""

_DENSE = '''

class DenseLoss:
    """Replaces one of the losses that the head of torchvision's RetinaNet or FCOS computes."""

    def __init__(self, head, loss, units="pixels"):
        self.head, self.loss, self.compute, self.units = head, loss, head.compute_loss, units
        head.compute_loss = self.computed

    def computed(self, targets, outputs, anchors, matched):
        name, sums = self.replaced(targets, outputs, anchors, matched)
        objects = [int((m >= 0).sum()) for m in matched]
        if is_fcos(self.head):  # divides by the objects of the batch, RetinaNet by those of each image
            value = sum(sums) / max(1, sum(objects))
        else:
            value = sum(total / max(1, n) for total, n in zip(sums, objects)) / len(sums)
        return self.compute(targets, outputs, anchors, matched) | {name: value}
'''

_DECODED = '''

def is_fcos(head):
    return hasattr(head, "box_coder")


def decoded(head, target, offsets, anchors, matched):
    """Boxes and their targets [m, 4], of the anchors of an image that have an object."""
    objects = matched >= 0
    decode = head.box_coder.decode if is_fcos(head) else head.regression_head.box_coder.decode_single
    return decode(offsets[objects].float(), anchors[objects]), target["boxes"][matched[objects]]
'''

_BOX_DENSE = """
    def replaced(self, targets, outputs, anchors, matched):
        sums = []
        for image in zip(targets, outputs["bbox_regression"], anchors, matched):
            boxes, truth = decoded(self.head, *image)
            if self.units == "strides":  # an anchor of FCOS is as long as the stride of its level
                stride = (image[2][:, 2:3] - image[2][:, :1])[image[3] >= 0]
                boxes, truth = boxes / stride, truth / stride
            sums.append(self.loss(boxes, truth).sum())
        return "bbox_regression", sums
"""

_CLASS_DENSE = """
    def replaced(self, targets, outputs, anchors, matched):
        sums = []
        images = zip(targets, outputs["bbox_regression"], anchors, matched)
        for logits, image in zip(outputs["cls_logits"], images):
            boxes, truth = decoded(self.head, *image)
            target, _, _, match = image
            objects, labels = match >= 0, torch.zeros_like(logits, dtype=torch.float32)
            labels[objects, target["labels"][match[objects]]] = 1.0
            quality = labels.clone()
            quality[objects] *= iou(boxes, truth)[:, None]
            counted = match != -2  # RetinaNet ignores anchors between its thresholds
            sums.append(self.loss(logits[counted], labels[counted], quality[counted]).sum())
        return "classification", sums
"""

_INSTALL_BOX = '''

def install(model, units=UNITS):
    """Puts the loss in the place of the box loss of a Faster R-CNN, Mask R-CNN, RetinaNet or FCOS.

    Args:
      model: of torchvision; it is changed.
      units: ``"pixels"`` of the resized image, or with FCOS ``"strides"`` of each level.
    """
    if units not in ("pixels", "strides"):
        raise ValueError(f"units are 'pixels' or 'strides', not {units!r}")
    dense = not hasattr(model, "roi_heads")
    if units == "strides" and not (dense and is_fcos(model.head)):
        raise ValueError("only boxes of FCOS have a stride; the loss was searched in strides: try units='pixels'")
    if dense:
        DenseLoss(model.head, SearchedLoss(), units=units)
    else:
        RoILoss(model.roi_heads, SearchedLoss())
    return model
'''

_INSTALL_MULTI_CLASS = '''

def install(model):
    """Puts the loss in the place of the classification loss of a Faster or Mask R-CNN of torchvision, which is changed.

    ``w`` is the IoU of each decoded box with its target; the background is class 0.
    """
    if not hasattr(model, "roi_heads"):
        raise ValueError(f"a softmax loss needs a Faster or Mask R-CNN, not {type(model).__name__}")
    RoILoss(model.roi_heads, SearchedLoss(background=0))
    return model
'''

_INSTALL_BINARY_CLASS = '''

def install(model):
    """Puts the loss in the place of the classification loss of a RetinaNet or FCOS of torchvision, which is changed.

    ``q`` is the IoU of each decoded box with its target.
    """
    if hasattr(model, "roi_heads"):
        raise ValueError(f"a sigmoid loss needs a RetinaNet or FCOS, not {type(model).__name__}")
    DenseLoss(model.head, SearchedLoss())
    return model
'''


CODE = {  # by space
    "box": "".join((_ROIS, _BOX_ROIS, _DENSE, _BOX_DENSE, _DECODED, _INSTALL_BOX)),
    "multi_class": "".join((_ROIS, _CLASS_ROIS, _INSTALL_MULTI_CLASS)),
    "binary_class": "".join((_DENSE, _CLASS_DENSE, _DECODED, _INSTALL_BINARY_CLASS)),
}

USAGE = """
For torchvision.  Save this file where Python finds it, say as searched_loss.py.  Before the training:

    import searched_loss
    searched_loss.install(model)

A model takes a box loss and a classification loss, each from its own file.  The normalisers are torchvision's.
"""
