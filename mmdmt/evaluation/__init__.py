"""Pictures of inputs and predictions, how good pseudo-labels are, and scores over some classes."""

from mmdmt.evaluation.iou_of_classes import IoUOfClasses
from mmdmt.evaluation.record_metric import RecordMetric

__all__ = ['IoUOfClasses', 'RecordMetric']
