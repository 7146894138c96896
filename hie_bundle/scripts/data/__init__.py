"""BONBID-HIE's layout: finding cases, splits and folds, checks, download. Knows files, not tensors."""
# ruff: noqa: F403

from .checks import *
from .datalists import *
from .fetching import *
from .folds import *
from .gate import *
from .layout import *
from .privacy import *
