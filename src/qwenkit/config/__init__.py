"""From a checkpoint's own settings to the one configuration the network reads."""
