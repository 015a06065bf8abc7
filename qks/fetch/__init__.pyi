from .datasets import (
    FETCHERS as FETCHERS,
    Fetcher as Fetcher,
    NUSWideFetchOptions as NUSWideFetchOptions,
    OpenImagesFetchOptions as OpenImagesFetchOptions,
    fetch_nuswide as fetch_nuswide,
    fetch_openimages as fetch_openimages,
)
from .images import FetchReport as FetchReport, fetch_images as fetch_images
from .policy import FetchPolicy as FetchPolicy
