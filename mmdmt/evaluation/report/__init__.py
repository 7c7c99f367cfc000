"""One self-contained HTML page that shows runs, their pseudo-labels and their predictions.

It needs jinja2 and matplotlib (``pip install mmdmt[optional]``).
"""

from mmdmt.evaluation.report.page import write_report

__all__ = ['write_report']
