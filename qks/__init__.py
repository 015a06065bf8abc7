"""Query-Based Knowledge Sharing: pictures and any label names in, the labels that are in the pictures out."""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
