"""The estimate of a step's memory is what a step on the CPU keeps, and what a GPU would."""

import importlib.util
import logging
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from tiny_models import tiny_segformer
from tiny_project import base_config, labeled_only, mean_teacher, mutual, online
from virtual_gpu import VirtualGPU

from mmdmt.models.losses.contrast import functional

TOOL = Path(__file__).parents[2] / 'tools' / 'analysis_tools' / 'estimate_memory.py'


def load_tool():
    spec = importlib.util.spec_from_file_location('estimate_memory', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load_tool()
MIX = dict(type='mmdmt.CutMix')


def cross_teacher(cfg):
    contrast = dict(bank=dict(size=4), threshold=0.5, anchors_per_class=8)
    return online(cfg, 'mmdmt.CrossTeacher', contrast=contrast)


METHODS = dict(
    supervised=labeled_only,
    mean_teacher=lambda cfg: mean_teacher(cfg, mix=MIX),
    dual_teacher=lambda cfg: online(cfg, 'mmdmt.DualTeacher', threshold=0.3),
    cross_teacher=cross_teacher,
    mutual=mutual,
)


@pytest.fixture(autouse=True)
def logging_as_before():
    yield
    logging.disable(logging.NOTSET)


def write(folder, method, segformer=False):
    cfg = base_config(folder, folder)
    if segformer:
        size = cfg['model']['data_preprocessor']
        cfg['model'] = dict(tiny_segformer(), data_preprocessor=size)
    cfg = Config(METHODS[method](cfg))
    cfg.default_scope = 'mmseg'
    path = folder / f'{method}.py'
    cfg.dump(path)
    return str(path)


def estimator(folder, method, segformer=False):
    return tool.Estimator(tool.training_config(write(folder, method, segformer)))


def kept_by_a_step(model, batch):
    """Bytes of the storages, but for weights, that autograd saves, and the loss."""
    known = {each.untyped_storage()._cdata for each in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        data = model.data_preprocessor(batch, True)
        loss, _ = model.parse_losses(model(**data, mode='loss'))
    return sum(kept.values()), loss


def on_the_cpu(model):
    """A copy with memory for its weights, which are zero or one."""
    model = model.to_empty(device='cpu')
    model.data_preprocessor._device = torch.device('cpu')
    for tensor in (*model.parameters(), *model.buffers()):
        torch.nn.init.ones_(tensor.data)
    return model


@pytest.mark.parametrize('segformer', [False, True])
@pytest.mark.parametrize('method', METHODS)
def test_what_is_kept_is_what_a_step_on_the_cpu_keeps(tmp_path, monkeypatch, method, segformer):
    # As on a GPU: a CPU leaves out rows by their values.
    monkeypatch.setattr(functional, '_compact', lambda chosen, *rows: rows)
    found = estimator(tmp_path, method, segformer)
    usage = found.measure(4)
    model = on_the_cpu(found.model)
    batch = tool.make_batch(model, tool.images_per_source(found.cfg, 4), 'cpu')
    kept, loss = kept_by_a_step(model, batch)
    assert usage.kept == kept > 0
    loss.backward()
    trained = [each for each in model.parameters() if each.requires_grad]
    assert usage.weights == sum(4 * each.numel() for each in trained)
    assert usage.gradients == sum(
        4 * each.grad.numel() for each in trained if each.grad is not None
    )
    assert usage.optimizer == usage.weights, 'momentum of SGD'


@pytest.mark.parametrize('segformer', [False, True])
@pytest.mark.parametrize('method', METHODS)
def test_what_mixed_precision_keeps_is_what_a_gpu_keeps(tmp_path, method, segformer):
    found = estimator(tmp_path, method, segformer)
    usage, single = found.measure(4, amp=True), found.measure(4)
    model, gpu = on_the_cpu(found.model), VirtualGPU()
    gpu.move(model)
    batch = tool.make_batch(model, tool.images_per_source(found.cfg, 4), 'cpu')
    with gpu:
        torch.set_autocast_cache_enabled(True)  # an export to ONNX that fails leaves it off
        torch.set_autocast_enabled('cuda', True)
        try:
            kept, _ = kept_by_a_step(model, batch)
        finally:
            torch.set_autocast_enabled('cuda', False)
            torch.clear_autocast_cache()
    assert usage.kept == pytest.approx(kept, rel=0.02)
    assert usage.kept < single.kept


def test_the_peak_holds_all_of_it(tmp_path):
    found = estimator(tmp_path, 'mean_teacher')
    small, large = found.measure(4), found.measure(8)
    fixed = small.weights + small.optimizer + small.teachers
    assert small.peak >= fixed + small.kept
    assert small.teachers >= small.weights, 'the teacher is as large as the student'
    assert large.kept == pytest.approx(2 * small.kept, rel=0.01)
    assert large.peak > small.peak and large.weights == small.weights


def test_the_optimizer_decides_on_its_state(tmp_path):
    cfg = tool.training_config(write(tmp_path, 'supervised'))
    cfg.optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
    usage = tool.Estimator(cfg).measure(2)
    assert usage.optimizer == pytest.approx(2 * usage.weights, rel=0.01)


def test_backbones_that_recompute_keep_less(tmp_path):
    found = estimator(tmp_path, 'mean_teacher')
    variants = found.variants(4)
    assert list(variants) == ['fp32', 'fp32, with_cp', 'AMP', 'AMP, with_cp']
    assert variants['fp32, with_cp'].kept < variants['fp32'].kept
    assert found.measure(4) == variants['fp32'], 'switched back'


@pytest.mark.parametrize('amp', [False, True])
def test_the_largest_batch_fits_and_the_next_does_not(tmp_path, amp):
    found = estimator(tmp_path, 'mean_teacher')
    limit = found.measure(10, amp).peak + 1
    batch = found.largest_batch(limit, amp)
    assert batch == 10
    assert found.measure(batch, amp).peak <= limit < found.measure(batch + 2, amp).peak
    assert found.largest_batch(found.measure(2).weights, amp) == 0


@pytest.mark.parametrize(
    'peak',
    [
        lambda images: 5000 + 100 * images,
        lambda images: 5000 + 70 * images + 60 * min(images, 12),  # flatter for large batches
        lambda images: 5000 + 100 * images + images**2 // 50,  # steeper
        lambda images: 5000 + 900 * (images // 9),  # in steps
    ],
)
@pytest.mark.parametrize('limit', [100, 5150, 5420, 11_000, 4_000_000])
def test_the_largest_batch_is_found_after_few_measurements(tmp_path, peak, limit):
    """A small network on a large GPU takes thousands of images, and a measurement seconds."""
    found, measured = estimator(tmp_path, 'mean_teacher'), []

    def measure(batch_size, amp):
        measured.append(batch_size)
        return Namespace(peak=peak(batch_size))

    found.measure = measure
    batch = found.largest_batch(limit)
    assert batch % 2 == 0 and (batch == 0 or peak(batch) <= limit)
    assert limit < peak(batch + 2 + batch // 100)
    assert len(measured) <= 20


def test_the_report_and_the_table(tmp_path, monkeypatch, capsys):
    paths = [write(tmp_path, 'mean_teacher'), write(tmp_path, 'mutual')]
    monkeypatch.setattr(sys, 'argv', ['tool', *paths, '--gpu-memory', '1.6', '--size', '48', '40'])
    tool.main()
    text = capsys.readouterr().out
    assert '2 labeled and 2 unlabeled images of 48x40' in text
    assert '1 labeled and 3 unlabeled images of 48x40' in text
    assert 'largest batch in 1.6 - 1.5 GiB' in text
    monkeypatch.setattr(sys, 'argv', ['tool', *paths, *paths, '--table'])
    tool.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and '/mean_teacher`' in lines[2] and ' 1+3 ' in lines[3]
