"""Import the slow modules that the command and the tests need, in the server from which test processes are forked."""

# ruff: noqa: F401 - only the imports matter
import gc

import accelerate
import h5py
import huggingface_hub
import matplotlib.pyplot
import pytest
import torch._dynamo  # imported by optimizers
import torchmetrics.classification

import ave_cmran

gc.freeze()  # a collection in a forked process would look at all of them
