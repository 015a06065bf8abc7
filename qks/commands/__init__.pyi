from .main import parse as parse
