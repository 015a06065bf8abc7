from .augment import Augmentation as Augmentation, LiveTokens as LiveTokens
from .cache import cache_size as cache_size, cache_tokens as cache_tokens, list_caches as list_caches
from .store import DiskTokens as DiskTokens
from .stream import StoredTokens as StoredTokens, TokenSource as TokenSource, ViewSampler as ViewSampler
