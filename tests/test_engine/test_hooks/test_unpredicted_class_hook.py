from types import SimpleNamespace

import torch
from mmengine.logging import MMLogger
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmdmt.engine.hooks import UnpredictedClassHook


def logged(classes, predictions, monkeypatch):
    lines = []
    monkeypatch.setattr(
        'mmdmt.engine.hooks.unpredicted_class_hook.print_log', lambda text, *_: lines.append(text)
    )
    dataset = SimpleNamespace(metainfo=dict(classes=classes))
    runner = SimpleNamespace(val_dataloader=SimpleNamespace(dataset=dataset))
    hook = UnpredictedClassHook()
    for _ in range(2):  # the second validation does not remember the first
        hook.before_val_epoch(runner)
        for prediction in predictions:
            sample = SegDataSample(pred_sem_seg=PixelData(data=torch.tensor([prediction])))
            hook.after_val_iter(runner, 0, None, [sample])
        hook.after_val_epoch(runner, {})
    return lines


def test_classes_without_a_predicted_pixel_are_named(monkeypatch):
    MMLogger.get_current_instance()
    names = ('background', 'polyp', 'tool')
    maps = [[[0, 0]], [[0.0, 1.0]]]  # one-channel heads predict real numbers
    assert logged(names, maps, monkeypatch) == ['never predicted in this validation: tool'] * 2
    assert logged(names[:2], maps, monkeypatch) == []
    assert logged(names, [], monkeypatch) == []
