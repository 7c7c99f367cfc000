"""Base of all on-line semi-supervised segmentors."""

import copy
import warnings
from abc import ABCMeta, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Dict, List, Optional, Sequence, Union

import torch
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmseg.models.segmentors import BaseSegmentor
from torch import Tensor, nn

from mmdmt.models.teachers import EMAUpdater, freeze
from mmdmt.registry import MODELS

TEACHER_MODES = ('eval', 'train')


def build_segmentor(cfg: dict) -> BaseSegmentor:
    """Build an ordinary mmseg segmentor from its config, which is left unchanged.

    Unprefixed types resolve in the default scope, or in mmseg's where none is set.
    """
    # A copy, because mmseg edits the config that it builds from; it reads keys as attributes.
    cfg = ConfigDict(copy.deepcopy(cfg))
    if DefaultScope.get_current_instance() is None:
        cfg.setdefault('_scope_', 'mmseg')
    return MODELS.build(cfg)


class SemiSegmentor(BaseSegmentor, metaclass=ABCMeta):
    """Students and teachers in one model, each an ordinary mmseg segmentor.

    A method is a subclass: it names its networks and writes :meth:`loss`. This class does what
    all methods do alike: build the networks from their configs, keep each teacher frozen, in its
    mode and up to date, load a plain supervised checkpoint into every network, and predict with
    the network that ``semi_test_cfg.predict_on`` names, so that test-time augmentation,
    inferencers and visualization work on it as on any segmentor.

    Checkpoints hold all networks under their names (``student.backbone...``,
    ``teacher.backbone...``) and the number of updates each teacher has had.

    Args:
        segmentor (dict): Config of an ordinary mmseg segmentor.
        semi_train_cfg (dict, optional): Settings of the method. All methods know:

            - ``ema`` (dict): Arguments of :class:`~mmdmt.models.teachers.EMAUpdater`.
            - ``teacher_mode`` (str): 'eval' (default) or 'train': batch norm and dropout of the
              teachers while they label.
        semi_test_cfg (dict, optional): ``predict_on`` (str or list[str]) is the network used for
            prediction, or a list of networks whose probabilities are averaged; 'average' are all
            students, 'teacher_average' all teachers. Defaults to :attr:`default_predict_on`.
        data_preprocessor (dict, optional): Config of the data preprocessor.
        init_cfg (dict, optional): mmengine's initialization config.

    Raises:
        ValueError: If a setting is unknown, names no network, or the segmentor has a single
            output channel (two classes need two channels here, softmax confidence is used).
    """

    #: Network that predicts where ``semi_test_cfg`` names none; None: the first teacher.
    default_predict_on: Optional[str] = None

    def __init__(
        self,
        segmentor: dict,
        semi_train_cfg: Optional[dict] = None,
        semi_test_cfg: Optional[dict] = None,
        data_preprocessor: Optional[dict] = None,
        init_cfg: Optional[dict] = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.semi_train_cfg = dict(semi_train_cfg or {})
        self.semi_test_cfg = dict(semi_test_cfg or {})
        self.teacher_mode = self.semi_train_cfg.get('teacher_mode', 'eval')
        if self.teacher_mode not in TEACHER_MODES:
            raise ValueError(
                f'`semi_train_cfg.teacher_mode` must be one of {TEACHER_MODES}, '
                f'got {self.teacher_mode!r}'
            )
        self.ema = EMAUpdater(**self.semi_train_cfg.get('ema', {}))
        self.teacher_hook_attached = False
        self.student_of: Dict[str, str] = {}
        self.student_names: List[str] = []
        self.build_networks(segmentor)
        self._finish_build()

    # ------------------------------------------------------------------ networks

    @abstractmethod
    def build_networks(self, segmentor: dict) -> None:
        """Build the networks of the method with :meth:`add_student` and :meth:`add_teacher`."""

    @abstractmethod
    def loss(self, inputs: Dict[str, Tensor], data_samples: Dict[str, list]) -> Dict[str, Tensor]:
        """Loss dict of one batch of views, as :class:`SemiDataPreprocessor` makes them."""

    def add_student(self, name: str, segmentor: dict) -> None:
        """Build a trained network under a name."""
        self.add_module(name, build_segmentor(segmentor))
        self.student_names.append(name)

    def add_teacher(self, name: str, segmentor: dict, student: str) -> None:
        """Build a network that follows ``student`` and gets no gradient."""
        self.add_module(name, freeze(build_segmentor(segmentor)))
        self.student_of[name] = student

    @property
    def teacher_names(self) -> List[str]:
        """Names of the teachers, in the order they were added."""
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

    def _finish_build(self) -> None:
        default = self.default_predict_on or (self.teacher_names or self.student_names)[0]
        self.predict_on = self.semi_test_cfg.get('predict_on', default)
        self._check_network_name(self.predict_on)
        first = self.network(self.student_names[0])
        self.num_classes = first.num_classes
        self.out_channels = first.out_channels
        self.align_corners = first.align_corners
        if self.out_channels == 1:
            raise ValueError(
                '`segmentor.decode_head.out_channels` is 1: set num_classes=2, out_channels=2, '
                'because pseudo-labels take their confidence from a softmax over the classes'
            )
        # On the CPU a step counter can be read without waiting for a GPU: keep a mirror of it.
        self.register_buffer('ema_steps', torch.zeros(len(self.teacher_names), dtype=torch.long))
        self._ema_steps = [0] * len(self.teacher_names)

    def _check_network_name(self, name: Union[str, Sequence[str]]) -> None:
        names = self._names_of(name)
        if not names or not set(names) <= set(self.network_names):
            raise ValueError(
                f'`semi_test_cfg.predict_on` is {name!r}, but {type(self).__name__} has the '
                f'networks {self.network_names}'
            )

    # ------------------------------------------------------------------ teachers

    def train(self, mode: bool = True) -> 'SemiSegmentor':
        """Set the mode; a teacher in 'eval' mode stays there.

        mmengine calls ``model.train()`` before every iteration, which would undo an ``eval()``
        done once.
        """
        super().train(mode)
        for name in self.teacher_names:
            self.network(name).train(mode and self.teacher_mode == 'train')
        return self

    def init_weights(self) -> None:
        """Initialize the students, then make every teacher a copy of its student."""
        for name in self.student_names:
            self.network(name).init_weights()
        self.reset_teachers()
        self._is_init = True

    def reset_teachers(self) -> None:
        """Make every teacher a copy of its student."""
        for teacher, student in self.student_of.items():
            self.network(teacher).load_state_dict(self.network(student).state_dict())

    def update_teachers(self) -> None:
        """Move the teachers after an optimizer step; called by ``TeacherUpdateHook``."""
        for name in self.teachers_to_update():
            self.update_teacher(name)

    def teachers_to_update(self) -> List[str]:
        """Names of the teachers that follow their student in this step. Defaults to all."""
        return self.teacher_names

    def update_teacher(self, name: str) -> None:
        """Move one teacher towards its student and count the step."""
        index = self.teacher_names.index(name)
        student = self.network(self.student_of[name])
        self.ema.update(self.network(name), student, self._ema_steps[index])
        self._ema_steps[index] += 1
        self.ema_steps[index] += 1

    def _warn_without_hook(self) -> None:
        """Say once that the teachers do not move where nobody calls :meth:`update_teachers`."""
        if self.training and not self.teacher_hook_attached and self.teacher_names:
            self.teacher_hook_attached = True
            warnings.warn(
                f"{type(self).__name__} trains without dict(type='mmdmt.TeacherUpdateHook') in "
                '`custom_hooks`: unless your own loop calls `update_teachers()` after each '
                'optimizer step, the teachers keep their initial weights',
                stacklevel=3,
            )

    # ------------------------------------------------------------------ checkpoints

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Load; keys of a plain segmentor go into every network."""
        names = tuple(f'{prefix}{name}.' for name in self.network_names)
        own = [key for key in state_dict if key.startswith(prefix)]
        if own and not any(key.startswith(names) for key in own):
            for key in own:
                value = state_dict.pop(key)
                state_dict.update({name + key[len(prefix) :]: value for name in names})
            # A plain checkpoint has no counters: the teachers start to follow from step 0.
            for name, counter in self._buffers.items():
                state_dict[f'{prefix}{name}'] = torch.zeros_like(counter)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._ema_steps = self.ema_steps.tolist()

    # ------------------------------------------------------------------ prediction

    @contextmanager
    def predicting_on(self, name: Union[str, Sequence[str]]) -> Iterator[None]:
        """Predict with another network, or the average of several, inside the ``with`` block."""
        self._check_network_name(name)
        before, self.predict_on = self.predict_on, name
        try:
            yield
        finally:
            self.predict_on = before

    def forward(self, inputs, data_samples=None, mode: str = 'tensor'):
        """As mmseg's; ``mode='loss'`` takes the dicts of views that the preprocessor makes."""
        if mode == 'loss':
            self._warn_without_hook()
        return super().forward(inputs, data_samples, mode)

    def predict(self, inputs: Tensor, data_samples: Optional[list] = None) -> list:
        """Predict with ``predict_on``; see mmseg's ``EncoderDecoder.predict``.

        Of several networks, ``seg_logits`` are the logarithms of their average probabilities.
        """
        networks = self.predictors()
        if len(networks) == 1:
            return networks[0].predict(inputs, data_samples)
        metas = _metas(inputs, data_samples)
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
            return self.encode_decode(inputs, _metas(inputs, data_samples))
        return self.network()._forward(inputs, data_samples)

    @property
    def with_neck(self) -> bool:
        """Whether the network ``predict_on`` has a neck."""
        return self.network().with_neck

    @property
    def with_auxiliary_head(self) -> bool:
        """Whether the network ``predict_on`` has an auxiliary head."""
        return self.network().with_auxiliary_head

    @property
    def with_decode_head(self) -> bool:
        """Whether the network ``predict_on`` has a decode head."""
        return self.network().with_decode_head

    @property
    def decode_head(self) -> nn.Module:
        """Decode head of the network ``predict_on`` (inferencers ask it for its classes)."""
        return self.network().decode_head


def _metas(inputs: Tensor, data_samples: Optional[list]) -> List[dict]:
    """Meta information of each image, made up where there are no data samples."""
    if data_samples is not None:
        return [sample.metainfo for sample in data_samples]
    size = tuple(inputs.shape[2:])
    meta = dict(ori_shape=size, img_shape=size, pad_shape=size, padding_size=[0] * 4)
    return [meta] * len(inputs)


def _average(logits: List[Tensor]) -> Tensor:
    """Logarithm of the average probabilities of networks; of a single one, its logits."""
    if len(logits) == 1:
        return logits[0]
    # Probabilities and not logits, which networks may have on different scales.
    probs = torch.stack([each.float().softmax(dim=1) for each in logits]).mean(dim=0)
    # No -inf, which becomes NaN where predictions are resized.
    return probs.clamp(min=1e-12).log()
