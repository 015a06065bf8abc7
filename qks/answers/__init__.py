"""Which pictures are asked about, and their tags in the forms that people and other programs read."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
