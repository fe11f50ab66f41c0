"""Images made from the teacher where there is no pool. This room is empty still; its two doors are open.

A method that makes images beforehand writes a selection folder with `dfkd.shards`; one that learns along with the
student is a `dfkd.distill.sources.Source`, whose `update` is the generator's step.
"""
