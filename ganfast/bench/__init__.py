"""Measurements that can be cited: variants proven equal, timed in turns, recorded with where they come from."""
