"""Key and value caches. Importing this alone loads no torch."""

PAGE_SIZE = 32
"""Tokens in a page of the paged cache, for the kernels (QK_PAGE of csrc/native.h) as well."""
