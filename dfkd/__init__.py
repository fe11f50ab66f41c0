"""dfkd: distil a small image classifier from a trained one when its training data cannot be had."""

__version__ = "0.2.0"
