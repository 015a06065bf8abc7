from .answer import Answer as Answer, AnswerInfo as AnswerInfo, answer_pictures as answer_pictures
from .asked import find_asked as find_asked, read_names as read_names
from .formats import choose_format as choose_format, open_writer as open_writer
