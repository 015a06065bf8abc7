"""Training-free readouts: what a frozen vision-language model says about a picture, asked in several ways."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
