from .frozen import VLP as VLP, fingerprint as fingerprint, preprocess_images as preprocess_images
from .loading import check_device as check_device, load_vlp as load_vlp
from .protocol import (
    VisionLanguageModel as VisionLanguageModel,
    check_vlp as check_vlp,
    register_vlp as register_vlp,
)
from .sources import WeightsSource as WeightsSource, weights_source as weights_source
from .towers import ImageTower as ImageTower, register_tower as register_tower
