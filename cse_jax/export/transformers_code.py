"""Code that puts exported losses into the DETRs of transformers."""

_PUT = '''

def put(model, mixin, needed):
    """Gives a model a loss function whose criterion has the methods of a class; other models keep theirs."""
    function, cls = model.loss_function, type(model)
    (name,) = {"ImageLoss", "RTDetrLoss"} & set(function.__code__.co_names) or (None,)
    if name not in needed:
        raise ValueError(f"{cls.__name__} takes none of the losses of this file, which are for {' and '.join(needed)}")
    criterion = type(name, (mixin, function.__globals__[name]), {})
    known = function.__globals__ | {name: criterion}
    own = type(function)(function.__code__, known, function.__name__, function.__defaults__, function.__closure__)
    own.__kwdefaults__ = function.__kwdefaults__
    model.__class__ = type(cls.__name__, (cls,), {"loss_function": staticmethod(own), "__module__": cls.__module__})
    return model


def corners(boxes):
    """Boxes [n, 4] as x1, y1, x2, y2 from centre and size."""
    centre, half = boxes[:, :2].float(), boxes[:, 2:].float() / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def matched(criterion, outputs, targets, indices):
    """The matched queries, and their boxes and targets [m, 4], between 0 and 1."""
    queries = criterion._get_source_permutation_idx(indices)
    truth = torch.cat([target["boxes"][rows] for target, (_, rows) in zip(targets, indices)])
    return queries, corners(outputs["pred_boxes"][queries]), corners(truth)
'''

_BOX = '''

def install(model, size=None):
    """Puts the loss in the place of the GIoU loss of DETR, RT-DETR and models that share their criterion.

    Args:
      model: of transformers; it is changed.
      size: (width, height) of the images as trained, by which boxes between 0 and 1 are multiplied.  If it is not
        given, the ``"size"`` of each image's labels, in pixels, as image processors of transformers write it.  A loss
        that was searched in strides needs it: pixels divided by a stride, say 16.
    """
    if size is None and UNITS == "strides":
        raise ValueError("the loss was searched in strides: give the size of the images in them, pixels / 16 say")
    loss = SearchedLoss()

    def scale(target):
        if size is None and "size" not in target:
            raise ValueError("the labels do not have the size of the images: give it to install")
        width, height = target["size"].tolist()[::-1] if size is None else size
        return target["boxes"].new_tensor([width, height, width, height], dtype=torch.float32)

    class Boxes:
        def loss_boxes(self, outputs, targets, indices, num_boxes):
            _, pred, truth = matched(self, outputs, targets, indices)
            scales = torch.cat([scale(t).expand(len(rows), 4) for t, (_, rows) in zip(targets, indices)])
            value = loss(pred * scales, truth * scales).sum() / num_boxes
            return super().loss_boxes(outputs, targets, indices, num_boxes) | {"loss_giou": value}

    return put(model, Boxes, ("ImageLoss", "RTDetrLoss"))
'''

_MULTI_CLASS = '''

def install(model):
    """Puts the loss in the place of the cross-entropy of DETR and models that share its criterion.

    ``w`` is the IoU of each matched box with its target.

    Args:
      model: of transformers; it is changed.
    """
    loss = SearchedLoss()

    class Labels:
        def loss_labels(self, outputs, targets, indices, num_boxes):
            queries, pred, truth = matched(self, outputs, targets, indices)
            logits = outputs["logits"].flatten(0, 1)
            labels = torch.full(outputs["logits"].shape[:2], self.num_classes, device=logits.device)
            labels[queries] = torch.cat([t["class_labels"][rows] for t, (_, rows) in zip(targets, indices)])
            quality = torch.ones(labels.shape, device=logits.device)
            quality[queries] = iou(pred, truth)
            weight = self.empty_weight[labels.flatten()]
            values = loss(logits, labels.flatten(), quality.flatten()) * weight
            return {"loss_ce": values.sum() / weight.sum()}

    return put(model, Labels, ("ImageLoss",))
'''

_BINARY_CLASS = '''

def install(model):
    """Puts the loss in the place of the varifocal loss of RT-DETR.

    ``q`` is the IoU of each matched box with its target.

    Args:
      model: of transformers; it is changed.
    """
    loss = SearchedLoss()

    class Labels:
        def loss_labels_vfl(self, outputs, targets, indices, num_boxes, log=True):
            queries, pred, truth = matched(self, outputs, targets, indices)
            classes = torch.cat([target["class_labels"][rows] for target, (_, rows) in zip(targets, indices)])
            labels = torch.zeros_like(outputs["logits"], dtype=torch.float32)
            labels[(*queries, classes)] = 1.0
            quality = labels.clone()
            quality[(*queries, classes)] = iou(pred, truth)
            return {"loss_vfl": loss(outputs["logits"], labels, quality).sum() / num_boxes}

    return put(model, Labels, ("RTDetrLoss",))
'''

CODE = {"box": _PUT + _BOX, "multi_class": _PUT + _MULTI_CLASS, "binary_class": _PUT + _BINARY_CLASS}  # by space

USAGE = """
For transformers 4.46.  Save this file where Python finds it, say as searched_loss.py.  Before the training:

    import searched_loss
    searched_loss.install(model)

A model takes a box loss and a classification loss, each from its own file.  The box loss stands for GIoU: its factor
(config.giou_loss_coefficient of DETR, config.weight_loss_giou of RT-DETR, both 2) and the L1 loss beside it stay.
Both are divided by the number of objects; DETR's classification loss is a mean in which no-object counts eos_coef.
"""
