"""Test-time augmentation whose logits are those of its prediction."""

from typing import List

import torch
from mmengine.structures import PixelData
from mmseg.models.segmentors import SegTTAModel
from mmseg.structures import SegDataSample
from torch import Tensor

from mmdmt.registry import MODELS


@MODELS.register_module()
class MeanTTAModel(SegTTAModel):
    """mmseg's ``SegTTAModel`` with the ``seg_logits`` of what it predicts.

    mmseg averages the probabilities of all views, but leaves the logits of the last view in the
    sample; here they are the logarithm of the average. Of a head with one channel it puts the
    probabilities through a second sigmoid, so that everything is above a half; here they are
    averaged as they are.
    """

    def merge_preds(self, data_samples_list: List[List[SegDataSample]]) -> List[SegDataSample]:
        """One sample for each image.

        Args:
            data_samples_list (list[list[SegDataSample]]): The predictions of an image's views.

        Returns:
            list[SegDataSample]: With ``seg_logits`` (C, H, W), as a segmentor gives them, and
            ``pred_sem_seg`` (1, H, W).
        """
        return [self._merge(samples) for samples in data_samples_list]

    def _merge(self, samples: List[SegDataSample]) -> SegDataSample:
        is_single = self.module.out_channels == 1
        mean: Tensor = sum(_probabilities(sample, is_single) for sample in samples) / len(samples)
        if is_single:
            label = (mean > self.module.decode_head.threshold).to(mean)
        else:
            label = mean.argmax(dim=0, keepdim=True)
            mean = mean.clamp_min_(torch.finfo(mean.dtype).tiny).log_()
        found = dict(seg_logits=PixelData(data=mean), pred_sem_seg=PixelData(data=label))
        samples[0].set_data(found)
        return samples[0]


def _probabilities(sample: SegDataSample, is_single: bool) -> Tensor:
    logits = sample.seg_logits.data.float()
    return logits if is_single else logits.softmax(dim=0)
