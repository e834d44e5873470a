"""Pairs of losses as people write them, and losses among them that are no formulas."""

import pytest

from cse_jax.language import spaces, zoo
from cse_jax.search.pairs import read_pair
from cse_jax.search.task import LibraryLoss, Task
from detectors import losses
from detectors.named_losses import LossError, NamedLoss

TASK = Task(spaces.MULTI_CLASS, box_weight=10.0)


def read(text):
    return read_pair(text, TASK, losses.library_loss)


def test_a_pair_may_hold_functions_of_the_library():
    name, pair = read("CE | ciou_loss x0.5")
    assert name == "CE | ciou_loss x0.5" and not pair.is_data
    assert pair.box == LibraryLoss("ciou_loss", spaces.BOX) and pair.box_weight == 5.0
    assert pair.key[1:] == [1.0, "ciou_loss", 5.0]
    term = losses.as_term(pair.box, pair.box_weight)
    assert isinstance(term, NamedLoss) and term.weight == 5.0
    assert read("CE | GIoU")[1].is_data and read("CE | GIoU")[1] == TASK.default


def test_a_loss_on_offsets_has_its_own_usual_weight():
    assert read("| l1_loss")[1].box_weight == 1.0
    assert read("| smooth_l1_loss(beta=0.5) x2")[1].box_weight == 2.0


@pytest.mark.parametrize(
    ("text", "name", "box"),
    [
        ("smooth = | smooth_l1_loss(beta=0.5)", "smooth", "smooth_l1_loss(beta=0.5)"),
        ("| smooth_l1_loss(beta=0.5)", "| smooth_l1_loss(beta=0.5)", "smooth_l1_loss(beta=0.5)"),
        ("smooth (usual) = | smooth_l1_loss", "smooth (usual)", "smooth_l1_loss"),
        ("squared = | 1 - i / u", "squared", "1 - i / u"),
    ],
)
def test_a_name_stands_before_an_equals_sign(text, name, box):
    found, pair = read(text)
    assert found == name and str(pair.box) == str(zoo.find(box, spaces.BOX) if "/" in box else box)


def test_a_function_of_another_space_is_refused():
    with pytest.raises(LossError, match="focal_loss does not fit space multi_class"):
        read("focal_loss |")
