"""The commands of `ganfast`: one module a command, a function of its arguments.

A command parses its arguments before it imports torch, so that a mistake shows at once.
"""
