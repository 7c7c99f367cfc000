"""No step of mutual training for classification waits for the device."""

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample
from tiny_classification import tiny_classifier
from virtual_gpu import VirtualGPU

import mmdmt.classification  # noqa: F401
from mmdmt.models.supervised import train_without_waiting
from mmdmt.registry import MODELS


@pytest.mark.parametrize('gamma', [0.0, 4.0])
def test_no_step_waits(gamma):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(tiny_classifier(gamma1=gamma, gamma2=gamma)).train()
    train_without_waiting(model)
    samples = [DataSample().set_gt_label(index % 3) for index in range(4)]
    samples[3].set_field(np.full(3, 1 / 3, np.float32), 'soft_label')
    images = [torch.zeros(3, 8, 8, dtype=torch.uint8) for _ in samples]
    gpu = VirtualGPU()
    gpu.move(model)
    with gpu:
        inputs = model.data_preprocessor(dict(inputs=images, data_samples=samples), True)
        loss, _ = model.parse_losses(model(**inputs, mode='loss'))
    assert loss.device.type == 'cuda' and loss.requires_grad
    # mmpretrain's preprocessor copies the labels of a batch to the device.
    assert [place for place in gpu.waits if 'mmpretrain/models/utils/data_pre' not in place] == []
