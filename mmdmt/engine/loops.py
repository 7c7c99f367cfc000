"""Evaluation of several networks of one model."""

from typing import Dict, List, Optional, Sequence, Union

from mmengine.runner import TestLoop, ValLoop

from mmdmt.distributed import unwrap
from mmdmt.models.methods import SemiSegmentor
from mmdmt.registry import LOOPS


class _NetworksMixin:
    """Runs a loop once per network and hands the hooks all metrics at once."""

    mode: str

    def __init__(self, *args, networks: Optional[Sequence[str]] = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.networks = networks

    def run(self) -> Dict[str, float]:
        """Evaluate each network.

        Returns:
            dict[str, float]: Metrics as ``<network>/<name>``, such as ``student/mIoU``. Those of
            the network that predicts by default stand there without prefix, too, so that
            ``save_best='mIoU'`` and curves of other methods keep their names. A model that is a
            single network is evaluated as by mmengine's loop.
        """
        runner = self.runner
        if not hasattr(unwrap(runner.model), 'predicting_on'):
            return super().run()
        runner.call_hook(f'before_{self.mode}')
        runner.call_hook(f'before_{self.mode}_epoch')
        runner.model.eval()
        model = unwrap(runner.model)
        default, metrics = model.predict_on, {}
        for name in self.networks or _networks(model):
            with model.predicting_on(name):
                for index, batch in enumerate(self.dataloader):
                    self.run_iter(index, batch)
                found = self.evaluator.evaluate(len(self.dataloader.dataset))
            prefix = name if isinstance(name, str) else '+'.join(name)
            metrics.update({f'{prefix}/{key}': value for key, value in found.items()})
            if name == default:
                metrics.update(found)
        runner.call_hook(f'after_{self.mode}_epoch', metrics=metrics)
        runner.call_hook(f'after_{self.mode}')
        return metrics


def _networks(model: SemiSegmentor) -> List[Union[str, Sequence[str]]]:
    """All networks, and what predicts by default where that is an average."""
    names = model.network_names
    return names if model.predict_on in names else [*names, model.predict_on]


@LOOPS.register_module()
class NetworksValLoop(_NetworksMixin, ValLoop):
    """Validates several networks of a ``SemiSegmentor``.

    Args:
        *args: As ``**kwargs``, of mmengine's ``ValLoop``.
        networks (Sequence[str], optional): Names of the networks, or whatever else ``predict_on``
            may be, such as 'average'; by default all networks, and ``predict_on``.
    """

    mode = 'val'


@LOOPS.register_module()
class NetworksTestLoop(_NetworksMixin, TestLoop):
    """Tests several networks of a ``SemiSegmentor``; see :class:`NetworksValLoop`."""

    mode = 'test'
