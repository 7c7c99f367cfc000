"""Several segmentors in one model, of which one, or the average of some, predicts."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Dict, List, Optional, Union

import torch
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmseg.models.segmentors import BaseSegmentor
from torch import Tensor

from mmdmt.models.forward import image_metas
from mmdmt.registry import MODELS


def build_segmentor(cfg: dict) -> BaseSegmentor:
    """Build an ordinary mmseg segmentor from its config, which is left unchanged.

    Unprefixed types resolve in the default scope, or in mmseg's where none is set.
    """
    # A copy, because mmseg edits the config that it builds from; it reads keys as attributes.
    cfg = ConfigDict(copy.deepcopy(cfg))
    if DefaultScope.get_current_instance() is None:
        cfg.setdefault('_scope_', 'mmseg')
    return MODELS.build(cfg)


class NetworksSegmentor(BaseSegmentor):
    """Students and teachers by name; :attr:`predict_on` names those that predict.

    To inferencers, hooks and test-time augmentation it is the segmentor that predicts.

    Attributes:
        student_names (list[str]): Names of the students.
        student_of (dict[str, str]): Student that each teacher follows, by the teacher's name.
        predict_on (str | list[str]): As of :class:`.SemiSegmentor`.
    """

    student_names: List[str]
    student_of: Dict[str, str]
    predict_on: Union[str, Sequence[str]]

    @property
    def teacher_names(self) -> List[str]:
        """Names of the teachers."""
        return list(self.student_of)

    @property
    def network_names(self) -> List[str]:
        """Names of all networks, students first."""
        return self.student_names + self.teacher_names

    def network(self, name: Optional[str] = None) -> BaseSegmentor:
        """The network of a name; by default the one that predicts, of several the first."""
        return getattr(self, name) if name else self.predictors()[0]

    def predictors(self) -> List[BaseSegmentor]:
        """The networks that predict, together if there are several."""
        return [getattr(self, name) for name in self._names_of(self.predict_on)]

    def _names_of(self, predict_on: Union[str, Sequence[str]]) -> List[str]:
        """Names of the networks that ``predict_on`` stands for."""
        averages = dict(average=self.student_names, teacher_average=self.teacher_names)
        if isinstance(predict_on, str):
            return averages.get(predict_on, [predict_on])
        return list(predict_on)

    def _check_network_name(self, name: Union[str, Sequence[str]]) -> None:
        names = self._names_of(name)
        if not names or not set(names) <= set(self.network_names):
            raise ValueError(
                f'`predict_on` is {name!r}, but {type(self).__name__} has the networks '
                f'{self.network_names}'
            )

    @contextmanager
    def predicting_on(self, name: Union[str, Sequence[str]]) -> Iterator[None]:
        """Predict with another network, or the average of several, inside the ``with`` block."""
        self._check_network_name(name)
        before, self.predict_on = self.predict_on, name
        try:
            yield
        finally:
            self.predict_on = before

    def predict(self, inputs: Tensor, data_samples: Optional[list] = None) -> list:
        """Predict with ``predict_on``; see mmseg's ``EncoderDecoder.predict``.

        Of several networks, ``seg_logits`` are the logarithms of their average probabilities.
        """
        networks = self.predictors()
        if len(networks) == 1:
            return networks[0].predict(inputs, data_samples)
        metas = image_metas(inputs, data_samples)
        logits = _average([network.inference(inputs, metas) for network in networks])
        return self.postprocess_result(logits, data_samples)

    def extract_feat(self, inputs: Tensor) -> List[Tensor]:
        """Features of the network ``predict_on``."""
        return self.network().extract_feat(inputs)

    def encode_decode(self, inputs: Tensor, batch_data_samples: List[dict]) -> Tensor:
        """Dense logits of ``predict_on``."""
        return _average(
            [network.encode_decode(inputs, batch_data_samples) for network in self.predictors()]
        )

    def _forward(self, inputs: Tensor, data_samples: Optional[list] = None) -> Tensor:
        if len(self.predictors()) > 1:
            return self.encode_decode(inputs, image_metas(inputs, data_samples))
        return self.network()._forward(inputs, data_samples)

    # What inferencers and hooks ask any segmentor, of the network that predicts.
    num_classes = property(lambda self: self.network().num_classes)
    out_channels = property(lambda self: self.network().out_channels)
    align_corners = property(lambda self: self.network().align_corners)
    with_neck = property(lambda self: self.network().with_neck)
    with_auxiliary_head = property(lambda self: self.network().with_auxiliary_head)
    with_decode_head = property(lambda self: self.network().with_decode_head)
    decode_head = property(lambda self: self.network().decode_head)


def _average(logits: List[Tensor]) -> Tensor:
    """Logarithm of the average probabilities of networks; of a single one, its logits."""
    if len(logits) == 1:
        return logits[0]
    # Probabilities and not logits, which networks may have on different scales.
    if logits[0].shape[1] == 1:
        return torch.stack([z.float().sigmoid() for z in logits]).mean(dim=0).logit(eps=1e-6)
    probs = torch.stack([each.float().softmax(dim=1) for each in logits]).mean(dim=0)
    # No -inf, which becomes NaN where predictions are resized.
    return probs.clamp(min=1e-12).log()
