"""A short training on the procedural set gives, from its seed, the figures that it gave before, on any machine."""

import pytest
from accelerate import Accelerator
from accelerate.utils import set_seed

from ave.model import CMRAN
from ave.procedural import make_procedural_set
from ave.training import train

LOSS_TOLERANCE = 1e-4
"""Relative; with other numbers of threads and other kernels they moved by 1e-7."""
ACCURACY_TOLERANCE = 2 / 130
"""Two of the val segments."""

GOLDEN = {
    "supervised": [(4.184740, 13 / 130, 20 / 230), (3.315093, 10 / 130, 20 / 230), (2.689235, 43 / 130, 15 / 230)],
    "weak": [(0.709417, 13 / 130, 27 / 230), (0.709335, 13 / 130, 27 / 230), (0.709180, 10 / 130, 0)],
}
"""Loss, val and test accuracy of every epoch."""


@pytest.mark.parametrize("setting", ["supervised", "weak"])
def test_golden_run(setting):
    data = make_procedural_set(num_train=29, num_val=13, num_test=23, num_background=3)
    set_seed(0)
    model = CMRAN(setting, categories=data.categories)
    training = train(model, data, Accelerator(cpu=True), epochs=3, batch_size=8, learning_rate=5e-4, seed=0)
    for epoch, (loss, val_accuracy, test_accuracy) in zip(training.history, GOLDEN[setting], strict=True):
        assert epoch.loss == pytest.approx(loss, rel=LOSS_TOLERANCE)
        assert epoch.val_accuracy == pytest.approx(val_accuracy, abs=ACCURACY_TOLERANCE)
        assert epoch.test_accuracy == pytest.approx(test_accuracy, abs=ACCURACY_TOLERANCE)
