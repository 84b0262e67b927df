"""A short training on the procedural set gives the recorded losses and accuracies, on any type of CPU."""

from functools import partial

import pytest
import torch

from ave.data.procedural import make_procedural_set
from ave.networks.cmran import CMRAN
from ave.train import TrainConfig, main

LOSS_TOLERANCE = {1: 2e-5, 2: 5e-4}
"""Relative, by epoch: with the kernels of other types of CPU, losses differed by 2e-6 and 6e-5."""
SEGMENT_TOLERANCE = 2.5
VAL_SEGMENTS, TEST_SEGMENTS = 130, 230

DRAWN = [0, 0, 1, 0, 0, 0, 1, 1]
"""By a seed of 0, with which torch draws other dropout masks in some versions than in others."""

GOLDEN = {
    ("supervised", False): [(4.178040, 13, 20), (3.275208, 10, 28)],
    ("weak", True): [(0.709430, 13, 27), (0.709344, 13, 27)],
}
"""By setting and whether there is dropout: every epoch's loss, and its right segments of val's and of test's."""


@pytest.mark.parametrize(("setting", "dropout"), GOLDEN)
def test_golden_run(setting, dropout, tmp_path):
    torch.manual_seed(0)
    if dropout and torch.empty(8).bernoulli_(0.5).tolist() != DRAWN:
        pytest.skip("this torch draws other dropout masks than the one that gave these figures")
    data = make_procedural_set(num_train=29, num_val=13, num_test=23, num_background=3)
    network = CMRAN if dropout else partial(CMRAN, dropout=0.0, input_dropout=0.0)
    config = TrainConfig(setting, epochs=2, batch_size=8, device="cpu", output=tmp_path)
    (metrics,) = main(config, data=data, network=network, draw=False)
    for epoch, (loss, right_of_val, right_of_test) in zip(metrics["history"], GOLDEN[setting, dropout], strict=True):
        assert epoch["loss"] == pytest.approx(loss, rel=LOSS_TOLERANCE[epoch["epoch"]])
        assert epoch["val_accuracy"] * VAL_SEGMENTS == pytest.approx(right_of_val, abs=SEGMENT_TOLERANCE)
        assert epoch["test_accuracy"] * TEST_SEGMENTS == pytest.approx(right_of_test, abs=SEGMENT_TOLERANCE)
