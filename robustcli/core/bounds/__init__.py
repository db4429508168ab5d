"""Bounds of a network over a region of images: boxes (IBP) and backward linear bounds (CROWN)."""

from robustcli.core.bounds.boxes import interval, walk
from robustcli.core.bounds.program import Program
from robustcli.core.bounds.trace import trace
from robustcli.core.bounds.unsupported import UnsupportedOperation

__all__ = ["Program", "UnsupportedOperation", "interval", "trace", "walk"]
