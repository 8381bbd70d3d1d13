"""The tests themselves: one file and one class for each area that a backend must prove."""
