"""Measurements that can be cited: variants proven equal, timed in turns, recorded with origin.

Imported as `ganfast.bench`, by the link ganfast/bench, in a checkout only: the wheel leaves it out.
"""
