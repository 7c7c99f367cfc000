"""The stages of mutual training: their plan, their configs and their ledger."""

from .ledger import Ledger, LedgerMismatchError
from .plan import MutualPlan, Stage
from .stage_config import StageConfigBuilder

__all__ = ['Ledger', 'LedgerMismatchError', 'MutualPlan', 'Stage', 'StageConfigBuilder']
