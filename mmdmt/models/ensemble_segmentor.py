"""Several networks that predict as one."""

from typing import Dict, List, Optional, Union

import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.structures import PixelData
from mmseg.models.segmentors import BaseSegmentor
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from mmdmt.models.forward import class_probabilities
from mmdmt.models.methods.base import build_segmentor
from mmdmt.registry import MODELS

Images = Union[Tensor, List[Tensor]]


@MODELS.register_module()
class EnsembleSegmentor(BaseSegmentor):
    """The mean of the class probabilities of several segmentors.

    For testing only. Each member is an ordinary mmseg segmentor that preprocesses the loaded
    images in its own way and predicts in its own mode (whole image or sliding window), so members
    may differ in everything but their classes; its probabilities are averaged at the size of the
    original image. ``seg_logits`` of a prediction are the logarithm of the mean: their softmax is
    the mean itself, as test-time augmentation and inferencers expect.

    Args:
        members (list[dict]): Configs of the segmentors, each with its ``data_preprocessor``. The
            weights come from the checkpoint of the ensemble, in which those of member i begin
            with ``members.<i>.``; :func:`~mmdmt.engine.mutual.ensemble.merge_checkpoints` makes
            it.

    Raises:
        ValueError: If there are no members, or their numbers of classes differ.
    """

    def __init__(self, members: List[dict]) -> None:
        # Images stay as loaded: each member has a preprocessor of its own.
        super().__init__(data_preprocessor=BaseDataPreprocessor())
        self.members = nn.ModuleList(build_segmentor(cfg) for cfg in members)
        # A head of one channel predicts two classes.
        channels = [max(2, member.out_channels) for member in self.members]
        if len(set(channels)) != 1:
            raise ValueError(
                '`members` must be one or more segmentors with the same number of classes; they '
                f'have {channels}'
            )
        first = self.members[0]
        self.num_classes = first.num_classes
        self.out_channels = channels[0]
        self.align_corners = first.align_corners

    @property
    def decode_head(self) -> nn.Module:
        """Decode head of the first member (inferencers ask it for its classes)."""
        return self.members[0].decode_head

    @torch.no_grad()
    def predict(
        self, inputs: Images, data_samples: Optional[List[SegDataSample]] = None
    ) -> List[SegDataSample]:
        """Predict images as loaded.

        Args:
            inputs (list[Tensor] | Tensor): Images (3, h, w) before any preprocessing.
            data_samples (list[SegDataSample], optional): Their meta information.

        Returns:
            list[SegDataSample]: With ``seg_logits`` (C, H, W) and ``pred_sem_seg`` (1, H, W) at
            the size of the original images.
        """
        if data_samples is None:
            data_samples = [SegDataSample(metainfo=_plain_meta(image)) for image in inputs]
        probs: List[Tensor] = []
        for member in self.members:
            # Samples of their own: members write padding and predictions into them.
            samples = [SegDataSample(metainfo=sample.metainfo) for sample in data_samples]
            data = member.data_preprocessor(dict(inputs=list(inputs), data_samples=samples), False)
            results = member.predict(data['inputs'], data['data_samples'])
            new = [class_probabilities(result) for result in results]
            probs = [old.add_(prob) for old, prob in zip(probs, new)] if probs else new
        return [self._write(*pair) for pair in zip(data_samples, probs)]

    def _write(self, sample: SegDataSample, total: Tensor) -> SegDataSample:
        """Put the mean of the members' probabilities into a sample."""
        mean = total.div_(len(self.members))
        logits = mean.clamp_min_(torch.finfo(mean.dtype).tiny).log_()
        label = logits.argmax(dim=0, keepdim=True)
        sample.set_data(dict(seg_logits=PixelData(data=logits), pred_sem_seg=PixelData(data=label)))
        return sample

    def _forward(self, inputs: Images, data_samples: Optional[list] = None) -> List[Tensor]:
        """Log-probabilities of each image, (C, H, W)."""
        return [sample.seg_logits.data for sample in self.predict(inputs, data_samples)]

    def loss(self, inputs: Images, data_samples: list) -> Dict[str, Tensor]:
        """An ensemble is not trained.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError('an EnsembleSegmentor is for testing: train its members')

    def extract_feat(self, inputs: Tensor) -> List[Tensor]:
        """There is no one feature of several networks.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError('an EnsembleSegmentor has no features: ask one of its `members`')

    def encode_decode(self, inputs: Tensor, batch_data_samples: list) -> Tensor:
        """Members preprocess in their own ways, so there is no common normalized input.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError('an EnsembleSegmentor predicts images as loaded: use `predict`')


def _plain_meta(image: Tensor) -> dict:
    size = tuple(image.shape[-2:])
    return dict(ori_shape=size, img_shape=size, pad_shape=size)
