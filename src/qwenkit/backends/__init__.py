"""The one interface consumers use, and what stands behind it."""
