"""The one place that states meshray's version. *Pure.*"""

__version__ = "0.1.0"
