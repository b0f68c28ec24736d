"""One file a method; the menu is in :mod:`lightning_robust`."""
