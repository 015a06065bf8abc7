from .errors import (
    QKSError as QKSError,
    check_count as check_count,
    check_fields as check_fields,
    check_labels as check_labels,
    shorten as shorten,
)
from .files import (
    ASSETS as ASSETS,
    atomic_file as atomic_file,
    cache_folder as cache_folder,
    can_write as can_write,
    project_folder as project_folder,
    remove_files as remove_files,
    spare_home as spare_home,
    temporary_folder as temporary_folder,
    write_atomic as write_atomic,
)
from .images import (
    MAX_PIXELS as MAX_PIXELS,
    DamagedImage as DamagedImage,
    UnreadableImage as UnreadableImage,
    accept_truncated_images as accept_truncated_images,
    check_image_exists as check_image_exists,
    load_image as load_image,
)
from .system import available_memory as available_memory, progress as progress
from .weights import read_tensors as read_tensors
