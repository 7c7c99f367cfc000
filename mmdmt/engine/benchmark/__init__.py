"""Compares methods: evaluation of work dirs, plans of runs, tables with statistics."""

from mmdmt.engine.benchmark.evaluate import evaluate_checkpoint, read_records

__all__ = ['evaluate_checkpoint', 'read_records']
