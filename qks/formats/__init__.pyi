from .records import ImportOptions as ImportOptions, Reading as Reading, Record as Record
from .registry import FORMATS as FORMATS, Format as Format, detect_format as detect_format, read_source as read_source
from .writing import Imported as Imported, import_pictures as import_pictures
