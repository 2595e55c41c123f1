"""Tests, one folder for each package of `offsite`; what they share is in `support`."""
