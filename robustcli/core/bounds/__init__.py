"""Bounds of a network over a region of images: boxes (IBP) and backward linear bounds (CROWN)."""

from robustcli.core.bounds.boxes import interval, walk
from robustcli.core.bounds.forecast import forecast
from robustcli.core.bounds.margins import METHODS, Analysis, Method, analyse, differentiable_margins, margins
from robustcli.core.bounds.program import Program
from robustcli.core.bounds.trace import trace
from robustcli.core.bounds.unsupported import UnsupportedOperation

__all__ = [
    "METHODS",
    "Analysis",
    "Method",
    "Program",
    "UnsupportedOperation",
    "analyse",
    "differentiable_margins",
    "forecast",
    "interval",
    "margins",
    "trace",
    "walk",
]
