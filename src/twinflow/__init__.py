"""TwinFlow: turn any flow-matching generator into a one-step generator."""

__version__ = "0.1.0"
