"""Building blocks of the network: rotary tables, attention over a ragged batch."""
