"""Drawing the pictures of a bundle. Needs NumPy and one back end."""
