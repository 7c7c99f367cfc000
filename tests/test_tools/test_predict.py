"""Prediction of a user's images with whatever was trained."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image
from tiny_bands import write_geotiff
from tiny_models import tiny_segformer
from tiny_project import PALETTE, ROOT, base_config, make_tree, mean_teacher

from mmdmt.checkpoint import UntrustedCheckpointError, checkpoint_identity, save_atomically
from mmdmt.evaluation.large_images import predict_large
from mmdmt.export.loading import load_segmentor
from mmdmt.export.segmentor import export_segmentor
from mmdmt.export.temperature import temperature_file
from mmdmt.registry import MODELS

SPEC = importlib.util.spec_from_file_location('predict_tool', ROOT / 'tools' / 'predict.py')
tool = importlib.util.module_from_spec(SPEC)
sys.modules['predict_tool'] = tool
SPEC.loader.exec_module(tool)

META = dict(classes=list('abcd'), palette=PALETTE)


@pytest.fixture(scope='module', autouse=True)
def scope():
    init_default_scope('mmseg')


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp('tree'))


def config(tree, build=mean_teacher, **model):
    cfg = build(base_config(tree, 'unused'))
    cfg['model'].update(model)
    return Config(dict(cfg, default_scope='mmseg', custom_imports=dict(imports=['mmdmt'])))


def always(network, index):
    """Make a network predict one class everywhere."""
    torch.nn.init.zeros_(network.decode_head.conv_seg.weight)
    torch.nn.init.zeros_(network.decode_head.conv_seg.bias)
    network.decode_head.conv_seg.bias.data[index] = 2.0


def save(cfg, path, model):
    meta = dict(cfg=cfg.pretty_text, dataset_meta=META, iter=1)
    save_atomically(dict(meta=meta, state_dict=model.state_dict()), path)
    return path


@pytest.fixture(scope='module')
def checkpoint(tree, tmp_path_factory):
    """Of a method whose student says 1 and whose teacher says 2, everywhere."""
    cfg = config(tree)
    model = MODELS.build(cfg.model.copy())
    always(model.student, 1)
    always(model.teacher, 2)
    return save(cfg, tmp_path_factory.mktemp('trained') / 'iter_1.pth', model)


@pytest.fixture
def images(tmp_path):
    """Images of different sizes and kinds in folders."""
    rng = np.random.default_rng(0)
    for name, size in (('a.png', (32, 40)), ('sub/b.jpg', (24, 24)), ('sub/deep/c.d.png', (16, 9))):
        path = tmp_path / 'images' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).save(path)
    (tmp_path / 'images' / 'notes.md').write_text('no image')
    return tmp_path / 'images'


@pytest.fixture
def predict(monkeypatch, tmp_path, capsys):
    """Call the tool; exit code (or message) and what it printed."""

    def call(source, *given, out=None):
        arguments = ['predict.py', source, *given, '--out', out or tmp_path / 'out']
        monkeypatch.setattr(sys, 'argv', [*map(str, arguments), '--device', 'cpu'])
        code = 0
        try:
            tool.main()
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr()

    return call


def read(path):
    with Image.open(path) as image:
        return np.array(image)


def test_folders_and_names_are_kept(predict, checkpoint, images, tmp_path):
    code, printed = predict(checkpoint, images, '--batch-size', 2)
    assert code == 0
    out = tmp_path / 'out'
    masks = sorted(path.relative_to(out).as_posix() for path in out.rglob('*.png'))
    assert masks == ['masks/a.png', 'masks/sub/b.png', 'masks/sub/deep/c.d.png']
    assert read(tmp_path / 'out/masks/a.png').shape == (32, 40)
    assert set(np.unique(read(tmp_path / 'out/masks/sub/deep/c.d.png'))) == {2}  # the teacher
    assert 'network teacher' in printed.out and '3 images' in printed.out
    assert 'class shares: c 100.0%' in printed.out
    assert len(printed.out.splitlines()) == 4
    record = json.loads((tmp_path / 'out' / 'prediction.json').read_text())
    assert record['class_shares']['c'] == 1 and record['images'] == 3


@pytest.mark.parametrize('network, label', [('student', 1), ('teacher', 2)])
def test_a_network_can_be_named(predict, checkpoint, images, tmp_path, network, label):
    predict(checkpoint, images / 'a.png', '--network', network)
    assert (read(tmp_path / 'out/masks/a.png') == label).all()


def test_a_work_dir_says_which_checkpoint_and_network(predict, checkpoint, images, tmp_path):
    record = dict(checkpoint=str(checkpoint), network='student')
    (tmp_path / 'final.json').write_text(json.dumps(record))
    predict(tmp_path, images / 'a.png')
    assert (read(tmp_path / 'out/masks/a.png') == 1).all()


def test_a_work_dir_without_an_end_names_its_checkpoints(predict, checkpoint, images):
    code, _ = predict(checkpoint.parent, images)
    assert 'final.json' in code and 'iter_1.pth' in code
    assert 'does not exist' in predict('absent.pth', images)[0]


def test_an_exported_folder_and_a_plain_config_predict_alike(predict, checkpoint, images, tmp_path):
    export_segmentor(checkpoint, tmp_path / 'exported')
    predict(tmp_path / 'exported', images / 'a.png', out=tmp_path / '1')
    weights = torch.load(tmp_path / 'exported' / 'segmentor.pth', weights_only=True)['state_dict']
    torch.save(dict(state_dict=weights), tmp_path / 'bare.pth')
    code, _ = predict(tmp_path / 'bare.pth', images / 'a.png')
    assert 'stores no config' in code
    given = ('--config', tmp_path / 'exported' / 'segmentor.py')
    predict(tmp_path / 'bare.pth', images / 'a.png', *given, out=tmp_path / '2')
    for folder in '12':
        assert (read(tmp_path / folder / 'masks/a.png') == 2).all()


def test_an_ensemble_predicts_the_mean_of_its_members(predict, tree, images, tmp_path):
    members = [base_config(tree, 'unused')['model'], tiny_segformer()]
    cfg = config(tree, dict, type='mmdmt.EnsembleSegmentor', members=members)
    cfg.model = dict(type='mmdmt.EnsembleSegmentor', members=members)
    model = MODELS.build(cfg.model.copy())
    for index, member in enumerate(model.members):
        always(member, index)
        member.decode_head.conv_seg.bias.data[3] = 1.5  # second of each: first of the mean
    path = save(cfg, tmp_path / 'ensemble.pth', model)
    predict(path, images / 'a.png', out=tmp_path / 'all')
    assert (read(tmp_path / 'all/masks/a.png') == 3).all()
    predict(path, images / 'a.png', '--network', 'members.1', out=tmp_path / 'one')
    assert (read(tmp_path / 'one/masks/a.png') == 1).all()
    with pytest.raises(ValueError, match=r"together here, \['members.0', 'members.1'\].*onnx"):
        export_segmentor(path, tmp_path / 'plain')
    exported = export_segmentor(path, tmp_path / 'plain', network='members.1')
    assert Config.fromfile(exported.config).model.backbone.type == 'MixVisionTransformer'


def test_an_average_predicts_as_its_validation_does(tree, tmp_path):
    cfg = config(tree, predict_on=['student', 'teacher'])
    model = MODELS.build(cfg.model.copy()).eval()
    path = save(cfg, tmp_path / 'a.pth', model)
    loaded = load_segmentor(path)
    assert loaded.networks == ['student', 'teacher']
    pixels = torch.randint(0, 256, (3, 32, 32)).byte()
    found = [
        each.predict(each.data_preprocessor(dict(inputs=[pixels]), False)['inputs'])[0]
        for each in (model, loaded.model)
    ]
    assert torch.equal(found[0].seg_logits.data, found[1].seg_logits.data)
    with pytest.raises(ValueError, match='no single mmseg model does'):
        export_segmentor(path, tmp_path)


def test_overlay_confidence_and_palette(predict, checkpoint, images, tmp_path):
    kinds = ('--save', 'mask', 'overlay', 'confidence', '--palette')
    predict(checkpoint, images / 'a.png', *kinds)
    out = tmp_path / 'out'
    confidence = read(out / 'confidence/a.png')
    expected = np.exp(2) / (np.exp(2) + 3)
    assert np.abs(confidence / 255 - expected).max() < 0.005
    image = read(images / 'a.png').astype(float)
    assert np.abs(read(out / 'overlays/a.png') - (image + PALETTE[2]) / 2).max() <= 1
    with Image.open(out / 'masks/a.png') as mask:
        assert mask.mode == 'P' and mask.getpalette()[6:9] == PALETTE[2]
        assert (np.array(mask) == 2).all()


def test_a_fitted_temperature_is_used_and_said(predict, checkpoint, images, tmp_path):
    path = checkpoint.with_name('final.pth')
    path.write_bytes(checkpoint.read_bytes())

    def confidence(name, *options):
        options = ('--save', 'mask', 'confidence', *options)
        _, shown = predict(path, images, *options, out=tmp_path / name)
        record = json.loads((tmp_path / name / 'prediction.json').read_text())
        assert (read(tmp_path / name / 'masks/a.png') == 2).all()
        gray = int(read(tmp_path / name / 'confidence/a.png')[0, 0])
        return gray, record['temperature'], 'logits are divided by' in shown.err

    plain = confidence('plain')
    facts = dict(temperature=4.0, network='teacher', checkpoint=checkpoint_identity(path))
    temperature_file(path).write_text(json.dumps(facts))
    logits = torch.tensor([0.0, 0.0, 2.0, 0.0])
    expected = [int((255 * (logits / t).softmax(0).max()).round()) for t in (1.0, 4.0, 2.0)]
    assert plain == (expected[0], 1.0, False) and confidence('fitted') == (expected[1], 4.0, True)
    assert confidence('without', '--temperature', '1') == (expected[0], 1.0, False)
    assert confidence('given', '--temperature', '2') == (expected[2], 2.0, True)
    assert load_segmentor(path, network='student', temperature='auto').temperature == 1.0
    with pytest.raises(ValueError, match='one network'):
        load_segmentor(path, network='student+teacher', temperature=2.0)


def test_a_broken_image_is_named_and_the_others_are_predicted(
    predict, checkpoint, images, tmp_path
):
    (images / 'broken.png').write_bytes(b'no image')
    code, printed = predict(checkpoint, images, '--batch-size', 4)
    assert code == '1 of 4 images failed'
    assert f'FAILED {images}/broken.png' in printed.err
    assert len(list((tmp_path / 'out' / 'masks').rglob('*.png'))) == 3


def test_nothing_is_overwritten_unasked(predict, checkpoint, images, tmp_path):
    predict(checkpoint, images / 'a.png')
    mask = tmp_path / 'out' / 'masks' / 'a.png'
    Image.fromarray(np.zeros((1, 1), np.uint8)).save(mask)
    code, _ = predict(checkpoint, images)
    assert '1 files are there already' in code and '--resume' in code
    code, printed = predict(checkpoint, images, '--resume')
    assert code == 0 and '1 were there already' in printed.out
    assert read(mask).size == 1
    predict(checkpoint, images, '--overwrite')
    assert read(mask).size > 1


def test_a_list_names_images_relative_to_itself(predict, checkpoint, images, tmp_path):
    (images / 'list.txt').write_text('# a comment\nsub/b.jpg\n\nsub/deep/c.d.png\n')
    assert predict(checkpoint, images / 'list.txt')[0] == 0
    found = sorted(p.name for p in (tmp_path / 'out').rglob('*.png'))
    assert found == ['b.png', 'c.d.png']


def test_images_that_differ_in_their_suffix_get_masks_of_their_own(tmp_path, images):
    Image.open(images / 'a.png').save(images / 'a.bmp')
    names = {item.name for item in tool.find_images([str(images)], tmp_path / 'out')}
    assert {'a.png', 'a.bmp', 'sub/b'} <= names
    with pytest.raises(FileNotFoundError, match='nowhere'):
        tool.find_images(['nowhere'], tmp_path)


def test_masks_get_the_values_of_the_training_masks(predict, tree, images, tmp_path):
    cfg = config(tree)
    steps = cfg.test_dataloader.dataset.pipeline
    model = MODELS.build(cfg.model.copy())
    always(model.teacher, 2)
    path = save(cfg, tmp_path / 'plain.pth', model)
    assert 'no `mask_values`' in predict(path, images / 'a.png', '--original-values')[0]
    steps[1].reduce_zero_label = True
    path = save(cfg, tmp_path / 'zero.pth', model)
    predict(path, images / 'a.png', '--original-values', '--overwrite')
    assert (read(tmp_path / 'out/masks/a.png') == 3).all()


@pytest.mark.parametrize(
    'given, expected',
    [
        ({0: 'a', 9: None, 7: 'b', 255: 'c', 254: 'c', 3: 'd'}, [0, 7, 255, 3]),
        ([0, 255, 4, 5], [0, 255, 4, 5]),
        ({'(1, 2, 3)': 'a', (4, 5, 6): 'b'}, [[1, 2, 3], [4, 5, 6]]),
    ],
)
def test_values_of_classes_are_the_first_that_mean_them(checkpoint, given, expected):
    loaded = load_segmentor(checkpoint)._replace(masks=dict(mask_values=given))
    assert tool.original_values(loaded).tolist() == expected


def test_a_head_of_one_channel_has_its_own_threshold(predict, tree, images, tmp_path):
    cfg = config(tree, dict)
    cfg.model.decode_head.update(num_classes=2, out_channels=1, threshold=0.3)
    cfg.model.decode_head.loss_decode = dict(type='CrossEntropyLoss', use_sigmoid=True)
    model = MODELS.build(cfg.model.copy())
    always(model, 0)
    model.decode_head.conv_seg.bias.data[0] = -0.5  # a probability of 0.38
    path = save(cfg, tmp_path / 'a.pth', model)
    predict(path, images / 'a.png', '--save', 'mask', 'confidence')
    assert (read(tmp_path / 'out/masks/a.png') == 1).all()
    assert (read(tmp_path / 'out/confidence/a.png') == round(0.3775 * 255)).all()


def test_windows_and_flips_predict_too(predict, checkpoint, images, tmp_path):
    assert predict(checkpoint, images / 'a.png', '--window', 16, '--tta')[0] == 0
    assert read(tmp_path / 'out/masks/a.png').shape == (32, 40)


@pytest.mark.parametrize('values', [False, True])
def test_of_a_large_tiff_only_windows_are_read(
    predict, tree, images, tmp_path, monkeypatch, values
):
    cfg = config(tree)
    cfg.test_dataloader.dataset.pipeline[0] = dict(type='mmdmt.LoadBands')
    if values:
        cfg.test_dataloader.dataset.pipeline[1].reduce_zero_label = True
    model = MODELS.build(cfg.model.copy())
    always(model.teacher, 2)
    path = save(cfg, tmp_path / 'bands.pth', model)
    pixels = np.random.default_rng(0).integers(1, 256, (40, 50, 3)).astype(np.uint8)
    pixels[:20] = 0
    write_geotiff(images / 'large.tif', pixels, nodata=0)
    write_geotiff(images / 'small.tif', pixels[-16:, -16:])
    (images / 'broken.tif').write_bytes(b'no image')
    seen = []

    def spied(model, path, *args, **settings):
        seen.append(path)
        return predict_large(model, path, *args, **settings)

    monkeypatch.setattr(tool, 'predict_large', spied)
    given = ('--window', 16, '--save', 'mask', 'confidence')
    given += ('--original-values',) if values else ()
    code, printed = predict(path, images, *given)
    assert code == '1 of 6 images failed' and 'broken.tif' in printed.err
    assert seen == [str(images / 'large.tif')]  # of others there are no windows to be read
    label = 3 if values else 2
    out = tmp_path / 'out'
    mask = read(out / 'masks/large.png')
    assert mask.shape == (40, 50) and (mask[:20] == 255).all() and (mask[20:] == label).all()
    assert (read(out / 'masks/small.png') == label).all()
    expected = round(255 * np.exp(2) / (np.exp(2) + 3))
    confidence = read(out / 'confidence/large.png')
    assert (confidence[:20] == 0).all() and (confidence[20:] == expected).all()
    assert 'class shares: c 100.0%' in printed.out
    assert not [found for found in out.iterdir() if found.name.startswith('tmp')]


@pytest.mark.parametrize('option', ['--tta', '--save=overlay', ''])
def test_what_needs_a_whole_tiff_reads_it(
    predict, checkpoint, images, tmp_path, monkeypatch, option
):
    monkeypatch.delattr(tool, 'predict_large')
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    write_geotiff(images / 'large.tif', pixels if option else pixels[..., 0])  # gray: made colors
    code, printed = predict(checkpoint, images / 'large.tif', '--window', 16, *option.split())
    assert code == 0, printed.err


@pytest.mark.parametrize(
    'image', [np.arange(12.0).reshape(3, 4), np.full((3, 4, 5), 40000, np.uint16)]
)
def test_bands_of_any_kind_are_shown(image):
    shown = tool.to_rgb(image, (6, 8))
    assert shown.shape == (6, 8, 3) and shown.dtype == np.uint8


def test_a_config_that_could_run_code_is_not_built(tree, tmp_path):
    cfg = config(tree)
    model = MODELS.build(cfg.model.copy())
    cfg.model.segmentor.backbone.type = 'os.system'
    path = save(cfg, tmp_path / 'a.pth', model)
    with pytest.raises(UntrustedCheckpointError, match='backbone'):
        load_segmentor(path)


def test_weights_that_do_not_fit_are_refused(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    del content['state_dict']['teacher.decode_head.conv_seg.bias']
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='1 weights are missing'):
        load_segmentor(tmp_path / 'a.pth')
    with pytest.raises(ValueError, match="no network 'peer'"):
        load_segmentor(checkpoint, network='peer')
