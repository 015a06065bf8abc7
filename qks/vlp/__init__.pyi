from .frozen import VLP as VLP, fingerprint as fingerprint, preprocess_images as preprocess_images
from .loading import check_device as check_device, load_vlp as load_vlp
