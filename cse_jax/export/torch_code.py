"""Code that exported modules for PyTorch consist of, beside the formula."""

AREAS = '''

def areas(pred, target):
    """Intersection, union and enclosure [n] of boxes [n, 4] as x1, y1, x2, y2."""
    pred, target = floats(pred, target)
    top_left = torch.maximum(pred[:, :2], target[:, :2])
    bottom_right = torch.minimum(pred[:, 2:], target[:, 2:])
    i = torch.prod(torch.clamp(bottom_right - top_left, min=0), dim=-1)
    own = [torch.prod(torch.clamp(box[:, 2:] - box[:, :2], min=0), dim=-1) for box in (pred, target)]
    u = own[0] + own[1] - i + 1e-7
    outer = torch.maximum(pred[:, 2:], target[:, 2:]) - torch.minimum(pred[:, :2], target[:, :2])
    return i, u, torch.prod(outer, dim=-1) + 1e-7
'''

IOU = '''

def iou(pred, target):
    """Detached IoU [n] of boxes [n, 4] as x1, y1, x2, y2."""
    i, u, _ = areas(pred.detach(), target)
    return i / u
'''

SEARCHED_LOSS = {
    "box": '''

class SearchedLoss(torch.nn.Module):
    """Box regression loss on decoded boxes."""

    def __init__(self, weight=WEIGHT):
        super().__init__()
        self.weight = weight

    def forward(self, pred, target):
        """The loss [n] of boxes [n, 4] as x1, y1, x2, y2, in the unit of the search, times the weight."""
        return self.weight * formula(*areas(pred, target))
''',
    "multi_class": '''

class SearchedLoss(torch.nn.Module):
    """Softmax classification loss; ``background`` is the index of that class, from the end if negative."""

    def __init__(self, weight=WEIGHT, background=-1):
        super().__init__()
        self.weight, self.background = weight, background

    def forward(self, logits, labels, quality=None):
        """The loss [n] of logits [n, C+1] and labels [n], times the weight.

        ``quality`` [n] is the IoU of each decoded box with its target, for rows of objects; 1 if it is not given.
        """
        y = torch.nn.functional.one_hot(labels, logits.shape[-1]).float()
        w = torch.ones_like(y)
        if quality is not None:
            background = labels == self.background % logits.shape[-1]
            w = torch.where(background, 1.0, quality.detach().float())[:, None].expand_as(y)
        return self.weight * formula(logits, y, w)
''',
    "binary_class": '''

class SearchedLoss(torch.nn.Module):
    """Sigmoid classification loss; ``alpha`` is the balance of positives, outside of the formula."""

    def __init__(self, weight=WEIGHT, alpha=0.25):
        super().__init__()
        self.weight, self.alpha = weight, alpha

    def forward(self, logits, labels, quality=None):
        """The loss [..., C] of logits [..., C] and labels [..., C], 0 or 1, times the weight.

        ``quality`` [..., C] is the IoU of each decoded box with its target at the label, 0 elsewhere; the labels
        if it is not given.
        """
        y = labels.float()
        q = y if quality is None else quality.detach().float()
        balance = self.alpha * y + (1 - self.alpha) * (1 - y)
        return self.weight * balance * formula(logits, q, y, 1 - y)
''',
}
