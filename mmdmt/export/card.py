"""What belongs beside exported weights where others find them: a model card, and its facts."""

import json
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch
import yaml

from mmdmt.files import atomic_path, write_text_atomically
from mmdmt.version import __version__

NOT_STATED = 'not stated'
_PIPELINE_TAG = 'image-segmentation'


def write_hub_folder(
    folder: Path,
    name: str,
    cfg: Any,
    record: Dict[str, Any],
    fields: Optional[Dict[str, str]] = None,
) -> List[Path]:
    """Make an exported folder, ``segmentor.py`` and ``segmentor.pth``, ready for a hub of models.

    Beside them come ``preprocessing.json``, ``segmentor.safetensors`` where safetensors is
    installed, and ``README.md``, a model card with front matter as Hugging Face reads it.

    Args:
        folder: The exported folder.
        name: Of the model.
        cfg: The exported config.
        record: ``final.json`` of the run, or empty: metrics, method, and why this checkpoint.
        fields: ``license`` of the model, ``data`` and ``data_license``, as the user states them.

    Returns:
        list[Path]: The files written.
    """
    content = torch.load(folder / 'segmentor.pth', weights_only=True)
    classes = list(content['meta']['dataset_meta'].get('classes') or [])
    facts = preprocessing(cfg, classes)
    written = [folder / 'preprocessing.json', folder / 'README.md']
    write_text_atomically(written[0], json.dumps(facts, indent=1))
    given = {key: value for key, value in (fields or {}).items() if value}
    parameters = sum(value.numel() for value in content['state_dict'].values())
    text = card_text(name, facts, record, given, parameters)
    write_text_atomically(written[1], text)
    try:
        from safetensors.torch import save_file
    except ImportError:
        return written
    with atomic_path(folder / 'segmentor.safetensors') as temporary:
        state = {key: value.contiguous() for key, value in content['state_dict'].items()}
        save_file(state, str(temporary), metadata=dict(classes=json.dumps(classes)))
    return [*written, folder / 'segmentor.safetensors']


def preprocessing(cfg: Any, classes: List[str]) -> Dict[str, Any]:
    """How images reach the network: channels, normalization, resizing, and the classes."""
    own = cfg.model.get('data_preprocessor') or {}
    converts = own.get('bgr_to_rgb') or own.get('rgb_to_bgr')
    steps = [dict(step) for step in cfg.get('test_pipeline') or []]
    test_cfg = cfg.model.get('test_cfg') or {}
    facts = dict(
        classes=classes,
        channels='RGB' if converts else 'BGR',
        range='0 to 255',
        mean=own.get('mean'),
        std=own.get('std'),
        resize=[step for step in steps if 'Resize' in str(step.get('type'))],
        prediction=dict(test_cfg),
    )
    return json.loads(json.dumps(facts, default=str))


def front_matter(name: str, metrics: Dict[str, float], method: str, given: Dict[str, str]) -> str:
    """The YAML block that hubs read at the head of a model card."""
    data = given.get('data', NOT_STATED)
    head = dict(
        license=given.get('license', 'unknown'),
        library_name='mmsegmentation',
        pipeline_tag=_PIPELINE_TAG,
        tags=['semantic-segmentation', 'semi-supervised', 'mmdmt', method],
    )
    if metrics:
        scores = [dict(type=key, value=round(value, 4), name=key) for key, value in metrics.items()]
        result = dict(
            task=dict(type=_PIPELINE_TAG, name='Semantic segmentation'),
            dataset=dict(name=data, type=data),
            metrics=scores,
        )
        head['model-index'] = [dict(name=name, results=[result])]
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=True).strip()


def card_text(
    name: str,
    facts: Dict[str, Any],
    record: Dict[str, Any],
    given: Dict[str, str],
    parameters: int = 0,
) -> str:
    """The model card: front matter in YAML, then what people read."""
    metrics = record.get('metrics') or {}
    method = record.get('method') or NOT_STATED
    data = given.get('data', NOT_STATED)
    scores = [f'| {key} | {value:.2f} |' for key, value in metrics.items()] or ['| not stated | |']
    rows = [f'{index}: {each}' for index, each in enumerate(facts['classes'])]
    lines = [
        '---',
        front_matter(name, metrics, method, given),
        '---',
        f'# {name}',
        '',
        f'A semantic segmentation network of {len(rows)} classes with {parameters / 1e6:.2f} M '
        f'values, trained with mmdmt {__version__}; method: {method}.',
        '',
        '## Classes',
        '',
        *(f'- {row}' for row in rows or [NOT_STATED]),
        '',
        '## Use',
        '',
        '```python',
        'from mmseg.apis import inference_model, init_model',
        '',
        "model = init_model('segmentor.py', 'segmentor.pth', device='cpu')",
        "result = inference_model(model, 'image.png').pred_sem_seg.data",
        '```',
        '',
        f'Images are {facts["channels"]} in {facts["range"]}, normalized by mean {facts["mean"]} '
        f'and std {facts["std"]}; `preprocessing.json` has all of it.',
        '',
        '## Scores on the validation set',
        '',
        '| metric | value |',
        '| --- | --- |',
        *scores,
        '',
        f'Chosen: {record.get("why", NOT_STATED)}.',
        '',
        '## Data and licenses',
        '',
        f'- Training data: {data}',
        f'- License of the training data: {given.get("data_license", NOT_STATED)}',
        f'- License of the weights: {given.get("license", NOT_STATED)}',
        '',
    ]
    return '\n'.join(lines)
