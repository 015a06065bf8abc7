from .check import Report as Report, missing_images as missing_images, require_images as require_images
from .index import (
    SPLITS as SPLITS,
    Index as Index,
    LabelledImages as LabelledImages,
    LabelledSplit as LabelledSplit,
    SparseLabels as SparseLabels,
    holdout as holdout,
    load_index as load_index,
    save_index as save_index,
)
from .presets import PRESETS as PRESETS, preset_labels as preset_labels
from .registry import DATASETS as DATASETS, Dataset as Dataset, detect_dataset as detect_dataset
from .splits import (
    Prepared as Prepared,
    check_dataset as check_dataset,
    open_split as open_split,
    open_splits as open_splits,
    prepare as prepare,
)
from .table import Table as Table, TableOptions as TableOptions, read_table as read_table
