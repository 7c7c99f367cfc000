"""Pictures of inputs and predictions, how good pseudo-labels are, scores and reliability."""

from mmdmt.evaluation.calibration import expected_calibration_error, reliable_segmentation_score
from mmdmt.evaluation.iou_of_classes import IoUOfClasses
from mmdmt.evaluation.record_metric import RecordMetric
from mmdmt.evaluation.reliability_metric import ReliabilityMetric
from mmdmt.evaluation.temperature import TemperatureMetric

__all__ = [
    'IoUOfClasses',
    'RecordMetric',
    'ReliabilityMetric',
    'TemperatureMetric',
    'expected_calibration_error',
    'reliable_segmentation_score',
]
