"""Imports of the server that test processes are forked from: what the command and the tests need, and is slow."""

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
