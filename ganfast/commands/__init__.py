"""One command of `ganfast` per module, each a function of its arguments. None imports torch before it has parsed them."""
