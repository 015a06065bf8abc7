from .frozen import VLP as VLP
from .frozen import fingerprint as fingerprint
from .frozen import preprocess_images as preprocess_images
from .loading import check_device as check_device
from .loading import load_vlp as load_vlp
