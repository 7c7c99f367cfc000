"""Base of all online semi-supervised segmentors."""

import inspect
import warnings
from abc import ABCMeta, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Dict, List, Optional, Tuple, Union

import torch
from torch import Tensor, nn

from mmdmt.checks import build_part, check_choice, check_range
from mmdmt.models.forward import (
    BATCH_STATISTICS,
    is_padded,
    joint_forward,
    refuse_recomputing,
    weighted_losses,
)
from mmdmt.models.perturbations import Perturb
from mmdmt.models.supervised import train_without_waiting
from mmdmt.models.teachers import EMAUpdater

from .networks import NetworksSegmentor, build_segmentor


@contextmanager
def seeded(seed: Optional[int]) -> Iterator[None]:
    """Random numbers of their own inside the ``with`` block; nothing changes without a seed."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class SemiSegmentor(NetworksSegmentor, metaclass=ABCMeta):
    """Students and teachers in one model, each an ordinary mmseg segmentor.

    A method is a subclass: it names its networks and writes :meth:`semi_loss`. This class does
    what all methods do alike: build the networks, keep each teacher frozen, in its mode and up to
    date, count iterations, train on labeled images alone where a batch has no others, and load a
    plain supervised checkpoint into every network.

    Checkpoints hold all networks under their names (``student.backbone...``,
    ``teacher.backbone...``) and the number of finished iterations.

    Args:
        students (dict[str, dict]): Config of an ordinary mmseg segmentor by the name of each
            student. The ``data_preprocessor`` of the first one is that of the whole model: the
            normalization and the size to pad to are written there and nowhere else.
        teachers (dict[str, str]): Name of the student that each teacher follows, by the name of
            the teacher. Defaults to no teachers.
        predict_on (str | list[str], optional): Network used for prediction, or several whose
            probabilities are averaged; 'average' are all students, 'teacher_average' all teachers.
            Defaults to :attr:`default_predict_on`.
        sup_weight (float): Weight of the supervised losses. Defaults to 1.
        unsup_weight (float): Weight of the unsupervised losses. Defaults to 1.
        rampup_iters (int): Iterations over which the weight of the unsupervised losses rises
            linearly from 0. Defaults to 0.
        ema (dict, optional): Arguments of :class:`~mmdmt.models.teachers.EMAUpdater`.
        batch_statistics (str): What batch norms of a student see. 'joint' (default): labeled and
            unlabeled images together, in one pass where the decode head allows it. 'separate': each
            by themselves. 'domain': each by themselves, and the running statistics, by which
            teachers label and networks predict, are those of the unlabeled images alone.
        seeds (Sequence[int], optional): Seed of the initial weights of each student. Defaults to
            the run's random numbers, which differ between students.
        data_preprocessor (dict, optional): For students that have none.
        init_cfg (dict, optional): mmengine's initialization config.

    Raises:
        TypeError: If a setting is unknown; the message names those that exist.
        ValueError: If a setting is out of range, or ``predict_on`` is no network.
    """

    #: Network that predicts where ``predict_on`` is not given; None: the first teacher.
    default_predict_on: Optional[str] = None

    def __init__(
        self,
        students: Dict[str, dict],
        teachers: Optional[Dict[str, str]] = None,
        *,
        predict_on: Union[str, Sequence[str], None] = None,
        sup_weight: float = 1.0,
        unsup_weight: float = 1.0,
        rampup_iters: int = 0,
        ema: Optional[dict] = None,
        batch_statistics: str = 'joint',
        seeds: Optional[Sequence[int]] = None,
        data_preprocessor: Optional[dict] = None,
        init_cfg: Optional[dict] = None,
        **unknown: Any,
    ) -> None:
        if unknown:
            raise TypeError(
                f'{type(self).__name__} has no setting {sorted(unknown)}; it has '
                f'{_settings_of(type(self))}'
            )
        super().__init__(
            data_preprocessor=_preprocessor(next(iter(students.values())), data_preprocessor),
            init_cfg=init_cfg,
        )
        for name, value in dict(
            sup_weight=sup_weight, unsup_weight=unsup_weight, rampup_iters=rampup_iters
        ).items():
            check_range(name, value, 0)
            setattr(self, name, value)
        self.ema = build_part('ema', EMAUpdater, ema)
        check_choice('batch_statistics', batch_statistics, BATCH_STATISTICS)
        self.batch_statistics = batch_statistics
        self.student_names = list(students)
        self.student_of = dict(teachers or {})
        if seeds and len(seeds) != len(students):
            raise ValueError(f'`seeds` needs one for each of {list(students)}, got {seeds}')
        self.seeds = dict(zip(students, seeds or [None] * len(students)))
        for name, cfg in students.items():
            with seeded(self.seeds[name]):
                self.add_module(name, build_segmentor(_without_preprocessor(cfg)))
        for name, student in self.student_of.items():
            cfg = _without_preprocessor(students[student])
            self.add_module(name, build_segmentor(cfg).requires_grad_(False))
        default = self.default_predict_on or (self.teacher_names or self.student_names)[0]
        self.predict_on = default if predict_on is None else predict_on
        self._check_network_name(self.predict_on)
        self._check_classes()
        refuse_recomputing(self, batch_statistics)
        train_without_waiting(self)
        # Set by `start_run`: length of the run, and of a pass over each source.
        self.max_iters: Optional[int] = None
        self.pass_iters: List[int] = []
        # The number of finished iterations: as a buffer for checkpoints, and as a plain number,
        # since the host would wait for a GPU to read the buffer.
        self.register_buffer('iterations', torch.zeros((), dtype=torch.long))
        self.step = 0

    # ------------------------------------------------------------------ training

    @abstractmethod
    def semi_loss(self, inputs: Dict[str, Tensor], data_samples: Dict[str, list]) -> dict:
        """Losses and statistics of a batch of labeled and unlabeled images: the method itself.

        Args:
            inputs (dict[str, Tensor]): ``sup`` (N_l, 3, H, W) and ``unsup_weak`` (N_u, 3, H, W),
                normalized; ``unsup_rgb`` (N_u, 3, H, W), the same images as RGB in [0, 1];
                ``unsup_valid`` (N_u, H, W) bool, False on padding.
            data_samples (dict[str, list]): ``sup`` and ``unsup``.

        Returns:
            dict[str, Tensor]: Losses, with ``loss`` in their key, and statistics.
        """

    def loss(self, inputs: Dict[str, Tensor], data_samples: Dict[str, list]) -> Dict[str, Tensor]:
        """Losses of one batch; of labeled images alone, the supervised ones."""
        if 'unsup_weak' in inputs:
            return self.semi_loss(inputs, data_samples)
        losses = {}
        for name in self.student_names:
            found = self.network(name).loss(inputs['sup'], data_samples['sup'])
            losses.update(self._supervised(name, found))
        return losses

    def forward_student(
        self,
        name: str,
        inputs: Dict[str, Tensor],
        data_samples: Dict[str, list],
        view: Tensor,
        with_sup: bool = False,
        perturb: Optional[Perturb] = None,
    ) -> Tuple[Dict[str, Tensor], Tensor]:
        """Train a student on the labeled images of a batch, and run it on a view of unlabeled ones.

        Returned are weighted supervised losses and logits (N, C, H, W) of the normalized images
        ``view`` (N, 3, H, W), ``with_sup`` those of the labeled images before them. All of it is
        one forward pass with joint ``batch_statistics`` where the decode head allows it;
        ``perturb`` changes the feature maps of the view, see :func:`.joint_forward`.
        """
        network, sup = self.network(name), inputs['sup']
        found, logits = joint_forward(
            network, sup, data_samples['sup'], view, with_sup, self.batch_statistics, perturb
        )
        return self._supervised(name, found), logits

    def strong_view(
        self, strong: Optional[nn.Module], inputs: Dict[str, Tensor], data_samples: Dict[str, list]
    ) -> Tensor:
        """Augmented and normalized unlabeled images, (N_u, 3, H, W); padding stays as it is."""
        weak, valid = inputs['unsup_weak'], inputs['unsup_valid']
        if strong is None:
            return weak
        if not is_padded(data_samples['unsup']):
            return self.data_preprocessor.normalize(strong(inputs['unsup_rgb']))
        view = self.data_preprocessor.normalize(strong(inputs['unsup_rgb'], valid))
        return torch.where(valid[:, None], view, weak)

    def unsup_scale(self) -> float:
        """``unsup_weight``, ramped up."""
        return self.unsup_weight * self.ramp()

    def ramp(self) -> float:
        """Factor that rises linearly from 0 to 1 over ``rampup_iters``."""
        return min(1.0, self.step / self.rampup_iters) if self.rampup_iters else 1.0

    def _supervised(self, name: str, losses: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Losses of a student on labeled images with weight and prefix: ``sup_``, ``sup_l.``."""
        side = name.replace('student', '').strip('_')
        return weighted_losses(losses, self.sup_weight, f'sup_{side}.' if side else 'sup_')

    def forward(self, inputs, data_samples=None, mode: str = 'tensor'):
        """As mmseg's; ``mode='loss'`` takes the dicts that the preprocessor makes."""
        if mode == 'loss' and self.training and self.max_iters is None:
            warnings.warn(  # Python shows it once
                f"{type(self).__name__} trains without dict(type='mmdmt.MethodHook') in "
                '`default_hooks`: unless your own loop calls `start_run()` and, after each '
                'optimizer step, `after_step()`, teachers keep their initial weights',
                stacklevel=2,
            )
        return super().forward(inputs, data_samples, mode)

    def start_run(self, max_iters: int, pass_iters: Sequence[int] = ()) -> None:
        """Learn how many optimizer steps the run has; called by ``MethodHook`` before the first.

        ``pass_iters`` are the steps in which every image of a source is drawn once, for each
        source; empty where the sampler cannot tell.
        """
        self.max_iters, self.pass_iters = max_iters, list(pass_iters)

    def reset_step(self) -> None:
        """Count from 0, also with weights of another run; called by ``MethodHook`` in a new run."""
        self.step = 0
        self.iterations.zero_()

    def after_step(self) -> None:
        """Move the teachers and count; called by ``MethodHook`` after each optimizer step."""
        self.update_teachers()
        self.step += 1
        self.iterations += 1

    # ------------------------------------------------------------------ networks

    def teachers_to_update(self) -> List[str]:
        """Names of the teachers that follow their student in this step. Defaults to all."""
        return self.teacher_names

    def update_teachers(self) -> None:
        """Move the teachers towards their students."""
        for name in self.teachers_to_update():
            self.update_teacher(name)

    def update_teacher(self, name: str) -> None:
        """Move one teacher towards its student."""
        student = self.network(self.student_of[name])
        self.ema.update(self.network(name), student, self.teacher_step(name))

    def teacher_step(self, name: str) -> int:
        """Number of updates a teacher has had, for the warm-up of its momentum."""
        return self.step

    def reset_teachers(self) -> None:
        """Make every teacher a copy of its student."""
        for teacher, student in self.student_of.items():
            self.network(teacher).load_state_dict(self.network(student).state_dict())

    def init_weights(self) -> None:
        """Initialize the students, then make every teacher a copy of its student."""
        for name in self.student_names:
            with seeded(self.seeds[name]):
                self.network(name).init_weights()
        self.reset_teachers()
        self._is_init = True

    def train(self, mode: bool = True) -> 'SemiSegmentor':
        """Set the mode; a teacher that labels in eval mode stays there.

        mmengine calls ``model.train()`` before every iteration, which would undo one ``eval()``.
        """
        self.training = mode
        for name, child in self.named_children():  # each once: that takes time in every step
            child.train(mode and (name not in self.teacher_names or self.ema.mode == 'train'))
        return self

    def _check_classes(self) -> None:
        channels = {name: self.network(name).out_channels for name in self.student_names}
        if len(set(channels.values())) > 1:
            raise ValueError(f'all students need the same classes, `segmentor` has {channels}')

    # ------------------------------------------------------------------ checkpoints

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Load; keys of a plain segmentor go into every network, and iterations start at 0."""
        names = tuple(f'{prefix}{name}.' for name in self.network_names)
        own = [key for key in state_dict if key.startswith(prefix)]
        if own and not any(key.startswith(names) for key in own):
            for key in own:
                value = state_dict.pop(key)
                state_dict.update({name + key[len(prefix) :]: value for name in names})
            rest = {prefix + key: value for key, value in self.state_dict().items()}
            state_dict.update({k: v for k, v in rest.items() if not k.startswith(names)})
            state_dict[f'{prefix}iterations'] = torch.zeros_like(self.iterations)
            if len(self.student_names) > 1:
                warnings.warn(
                    f'{self.student_names} start from the same weights, and will stay alike unless '
                    'they see different images: load backbones by `init_cfg` instead',
                    stacklevel=2,
                )
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.step = int(self.iterations)


def _settings_of(method: type) -> List[str]:
    """Names of the keyword arguments of a method and of its bases."""
    names = set()
    for kind in method.__mro__:
        if issubclass(kind, SemiSegmentor) and '__init__' in vars(kind):
            parameters = inspect.signature(kind.__init__).parameters.values()
            names |= {each.name for each in parameters if each.kind is each.KEYWORD_ONLY}
    return sorted(names)


def _preprocessor(segmentor: dict, given: Any) -> Any:
    """Config of the preprocessor of a model, from that of the segmentor that it wraps."""
    own = segmentor.get('data_preprocessor') or given
    if own is None:
        raise ValueError(
            '`segmentor.data_preprocessor` is missing: it sets how images are normalized and to '
            'which size they are padded'
        )
    return own if isinstance(own, nn.Module) else dict(own, type='mmdmt.SemiDataPreprocessor')


def _without_preprocessor(segmentor: dict) -> dict:
    return {key: value for key, value in segmentor.items() if key != 'data_preprocessor'}
