import pytest
import torch
from mmengine.config import Config
from tiny_models import tiny_segformer, tiny_segmentor

from mmdmt.checkpoint import load_checkpoint_file
from mmdmt.engine.mutual.ensemble import ensemble_config, ensemble_kinds, merge_checkpoints


def write(path, value, steps=3, **extra):
    state = dict(weight=torch.full((2, 2), value), steps=torch.tensor(steps), **extra)
    torch.save(dict(state_dict=state, meta=dict(iter=5)), path)
    return str(path)


def test_what_is_asked_for():
    assert ensemble_kinds(False) == ensemble_kinds({}) == []
    assert ensemble_kinds(True) == ['predictions']
    assert ensemble_kinds(dict(weights=True, predictions=False)) == ['weights']
    with pytest.raises(ValueError, match=r"mutual\.ensemble.*'mean'"):
        ensemble_kinds(dict(mean=True))


def test_one_checkpoint_from_several(tmp_path):
    paths = [write(tmp_path / f'{index}.pth', value) for index, value in enumerate((1.0, 4.0))]
    merge_checkpoints(paths, str(tmp_path / 'all.pth'), 'predictions')
    state = load_checkpoint_file(tmp_path / 'all.pth')['state_dict']
    assert set(state) == {f'members.{i}.{key}' for i in (0, 1) for key in ('weight', 'steps')}
    assert (state['members.1.weight'] == 4).all()
    merge_checkpoints(paths, str(tmp_path / 'mean.pth'), 'weights')
    state = load_checkpoint_file(tmp_path / 'mean.pth')['state_dict']
    assert (state['weight'] == 2.5).all() and state['weight'].dtype == torch.float32
    assert state['steps'] == 3


def test_weights_that_do_not_fit_are_not_averaged(tmp_path):
    paths = [write(tmp_path / 'a.pth', 1.0), write(tmp_path / 'b.pth', 1.0, bias=torch.zeros(2))]
    with pytest.raises(ValueError, match=r'b\.pth.*bias'):
        merge_checkpoints(paths, str(tmp_path / 'mean.pth'), 'weights')
    assert not (tmp_path / 'mean.pth').exists()


def whole_config():
    return Config(
        dict(
            model=tiny_segmentor(),
            train_dataloader=dict(),
            train_cfg=dict(),
            val_dataloader=dict(batch_size=1),
            mutual=dict(),
            runner_type='mmdmt.MutualTrainingRunner',
        )
    )


def test_the_config_is_tested_and_not_trained():
    models = [tiny_segmentor(), tiny_segformer()]
    whole = whole_config()
    whole.evaluation_protocol = 'ade20k'  # would be written into the ensemble, which has no mode
    # mmengine would give this one to the ensemble, which takes none.
    whole.data_preprocessor = dict(type='SegDataPreProcessor')
    cfg = ensemble_config(whole, models, 'predictions', '/work_dir/ensemble')
    assert 'data_preprocessor' not in cfg and whole.data_preprocessor
    assert 'evaluation_protocol' not in cfg and whole.evaluation_protocol
    assert 'train_cfg' not in cfg and 'mutual' not in cfg and 'train_dataloader' not in cfg
    assert cfg.runner_type == 'mmdmt.SemiRunner' and cfg.val_dataloader.batch_size == 1
    assert [m.backbone.type for m in cfg.model.members] == ['ResNet', 'MixVisionTransformer']


def test_weights_need_networks_of_one_kind_but_not_one_start():
    other = tiny_segmentor()
    other['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint='coco.pth')
    cfg = ensemble_config(whole_config(), [tiny_segmentor(), other], 'weights', '/work_dir')
    assert cfg.model.type == 'EncoderDecoder'
    other['data_preprocessor']['bgr_to_rgb'] = False  # other inputs: other weights
    with pytest.raises(ValueError, match=r'ensemble\.weights'):
        ensemble_config(whole_config(), [tiny_segmentor(), other], 'weights', '/work_dir')
