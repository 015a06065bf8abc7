"""Probabilities that mean what they say, and the thresholds above which a label is shown."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
