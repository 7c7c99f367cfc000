"""One of two processes that evaluate five images together, and the images.

Run by test_evaluation/test_reliability_metric.py.
"""

import json
import sys
from pathlib import Path

import torch
from mmengine.dataset import DefaultSampler
from mmengine.dist import get_rank

from mmdmt.distributed import join_process_group
from mmdmt.evaluation import ReliabilityMetric

IMAGES = 5
CLASSES = 4


def image(index, size=(20, 30), classes=CLASSES):
    """A data sample as a metric gets it, with an overconfident prediction and unlabeled pixels."""
    generator = torch.Generator().manual_seed(index)
    label = torch.randint(0, classes, (size[0] // 5, size[1] // 5), generator=generator)
    label = label.repeat_interleave(5, 0).repeat_interleave(5, 1)
    logits = torch.randn(classes, *size, generator=generator)
    logits.scatter_add_(0, label[None], torch.full((1, *size), 1.5))
    logits *= 3
    label[:2] = 255
    return dict(
        img_path=f'{index}.png',
        seg_logits=dict(data=logits),
        pred_sem_seg=dict(data=logits.argmax(0, keepdim=True)),
        gt_sem_seg=dict(data=label[None]),
    )


def evaluate(samples, size=None, classes=CLASSES, **settings):
    """Metrics of some samples."""
    metric = ReliabilityMetric(**settings)
    metric.dataset_meta = dict(classes=[f'class_{index}' for index in range(classes)])
    for sample in samples:
        metric.process({}, [sample])
    return metric.evaluate(len(samples) if size is None else size)


def main():
    """Evaluate this rank's images, of which one is there twice."""
    join_process_group('pytorch', {})
    indices = list(DefaultSampler(range(IMAGES), shuffle=False))
    found = evaluate([image(index) for index in indices], IMAGES, trimap_width=2)
    content = dict(indices=indices, metrics=found)
    (Path(sys.argv[1]) / f'{get_rank()}.json').write_text(json.dumps(content))


if __name__ == '__main__':
    main()
